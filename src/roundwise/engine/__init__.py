"""How a run goes: samples in, units solved one after the other, a network out."""
