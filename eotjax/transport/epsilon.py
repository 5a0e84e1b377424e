"""The epsilon whose plan has a wanted entropy."""

import functools
import math
from collections.abc import Callable

from scipy.optimize import brentq

from eotjax.errors import UserError
from eotjax.transport.sinkhorn import PlanStats

Describe = Callable[[float], PlanStats]  # the plan of one epsilon: scalars
FACTOR = 4.0  # between epsilons while a bracket is sought
RANGE = (1e-6, 1e3)  # of epsilon, in units of the mean cost
PRECISION = 0.01  # of log epsilon


def of_entropy(
    describe: Describe, wanted: float, *, mean: float, report=print
) -> float:
    """The epsilon whose plan has the normalised entropy `wanted`, in 0 to 1.

    The entropy grows with epsilon: a bracket is sought from 0.05 of the mean cost on,
    then closed by Brent's method in log epsilon.

    Args:
      describe: the plan of an epsilon.
      wanted: its entropy.
      mean: of the cost.
      report: told of every plan that is tried.

    Raises:
      UserError: no epsilon has a plan of this entropy that Sinkhorn solves.
    """
    if mean <= 0:
        raise UserError("all images are equal, and every plan too: no entropy to find.")

    @functools.cache  # Brent's method begins with the ends of the bracket
    def plan(log_epsilon: float) -> PlanStats:
        epsilon = math.exp(log_epsilon)
        stats = describe(epsilon)
        report(f"epsilon {epsilon:.4g}: plan entropy {float(stats.entropy):.3f}")
        return stats

    def excess(log_epsilon: float) -> float:
        return float(plan(log_epsilon).entropy) - wanted

    def found(log_epsilon: float) -> float:
        # The ends of the bracket need not converge, the plan that is kept must.
        epsilon, stats = math.exp(log_epsilon), plan(log_epsilon)
        if float(stats.converged) < 1:
            raise UserError(
                f"no plan of entropy {wanted} was found: at epsilon {epsilon:.3g} "
                f"(entropy {float(stats.entropy):.3f}) Sinkhorn does not converge; set "
                "coupling.entropy higher or raise coupling.max_iterations."
            )
        return epsilon

    point = math.log(0.05 * mean)
    value = excess(point)
    step = -math.copysign(math.log(FACTOR), value)
    while value != 0:
        before, point = point, point + step
        ratio = math.exp(point) / mean
        if not RANGE[0] < ratio < RANGE[1]:
            raise UserError(
                f"no plan has entropy {wanted}: at epsilon {math.exp(before):.3g} it "
                f"still is {value + wanted:.3f}; set coupling.entropy "
                f"{'higher' if step < 0 else 'lower'}."
            )
        previous, value = value, excess(point)
        if previous * value <= 0:
            return found(brentq(excess, *sorted((before, point)), xtol=PRECISION))
    return found(point)
