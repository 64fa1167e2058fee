"""Searches for codes that lower an objective: one file for each, all of them settings with one method, `search`.

    exhaustive      try all roundings of a row; for at most ten columns or so
    relaxation      let weights move continuously between two codes, by gradients; AdaRound's mathematics
    descent         set one code at a time to its best value, until no change helps
    tabu            change one code at a time, uphill too, and remember the best codes met
    cross_entropy   draw roundings at random, and draw the next ones nearer to the best of them

The first two choose between the two codes around a *centre*, the others start from codes and stay within `Choices`.
"""
