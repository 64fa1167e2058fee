"""What the solvers that work from second moments (`Gram`) share: objectives, the alternation, and the held-out check.

objectives   the errors of a layer's output that a solver may lower, each with a name; and candidates to lower them
loop         alternate between codes, scale and bias, and targets for a clamp: the inner loop of `GramAdaRound`
referee      compare the result with nearest rounding on held-out samples
"""
