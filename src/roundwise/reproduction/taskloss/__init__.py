"""Rounding one layer by what it costs the network's task: the paper's starting point (Section 3.1).

hessian    how the task loss curves along one layer's weights (Eq. 13)
qubo       the up and down of that layer's weights as one binary problem, and two ways to solve it

AdaRound is what remains of this when it is made cheap enough for every layer of a network. So this is for measuring
what was lost on the way, on layers with few weights.
"""

from roundwise.reproduction.taskloss.hessian import (
    ExactHessian,
    GaussNewton,
    PredictedClasses,
    PredictedProbabilities,
    TaskHessian,
    task_hessian,
)
from roundwise.reproduction.taskloss.qubo import CROSS_ENTROPY, TABU, solve_qubo

__all__ = [
    "CROSS_ENTROPY",
    "TABU",
    "ExactHessian",
    "GaussNewton",
    "PredictedClasses",
    "PredictedProbabilities",
    "TaskHessian",
    "solve_qubo",
    "task_hessian",
]
