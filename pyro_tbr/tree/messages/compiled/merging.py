"""Fewer components, and back, in compiled loops: as :mod:`~pyro_tbr.tree.messages.merging` says."""

from __future__ import annotations

from math import exp, expm1, inf, log

from pyro_tbr.jit import jit
from pyro_tbr.tree.messages.compiled.mixtures import Array, log_sum, mass, relevance

FLATTEST = 0.01  # a merged message is at least this share as precise as its heaviest part
VAGUEST = 1e-3  # what the rest said is at least this share as precise as the component
TINY = 1e-60  # a variance of zero, so that one can divide by it
LEAST_VAR = 1e-300  # so that it has a logarithm
_LOG_TWO = log(2.0)
_LEAST_LOSS = 1e-7  # share of its weight that is lost where a component is merged into its like


@jit
def heaviest(values: Array, n: int, num: int, places: Array, spare: Array) -> None:
    """The places of the ``num`` largest of the first ``n`` values, largest first."""
    for i in range(n):
        spare[i] = i
    low, high = 0, n - 1
    while low < high:  # the larger ones to the front, as far as the last one that is asked for
        pivot = values[spare[(low + high) // 2]]
        left, right = low, high
        while left <= right:
            while values[spare[left]] > pivot:
                left += 1
            while values[spare[right]] < pivot:
                right -= 1
            if left <= right:
                spare[left], spare[right] = spare[right], spare[left]
                left += 1
                right -= 1
        if num - 1 <= right:
            high = right
        elif num - 1 >= left:
            low = left
        else:
            break
    for i in range(num):
        at = spare[i]
        j = i
        while j > 0 and values[places[j - 1]] < values[at]:
            places[j] = places[j - 1]
            j -= 1
        places[j] = at


@jit
def nearest_kept(
    mean: Array, var: Array, half_log: Array, n: int, kept: Array, num: int, group: Array,
    means: Array, vars_: Array, halves: Array,
) -> None:  # fmt: skip
    """Which of the kept components each belongs to, by Bhattacharyya distance.

    Twice the distance less a term of the component's own is ``gap^2 / 2 (v + v_k) + log(v + v_k) -
    log(v_k) / 2``, and what follows the first part is never below ``log 2 + log(v) / 2``: so most
    are ruled out without a logarithm.
    """
    for k in range(num):
        means[k], halves[k] = mean[kept[k]], half_log[kept[k]]
        vars_[k] = max(var[kept[k]], LEAST_VAR)
    last = 0
    for i in range(n):
        v, m = max(var[i], LEAST_VAR), mean[i]
        least = _LOG_TWO + half_log[i]
        gap, total = m - means[last], v + vars_[last]
        best, place = 0.5 * gap * gap / total + log(total) - halves[last], last
        slack = 2 * (best - least)
        for k in range(num):
            gap, total = m - means[k], v + vars_[k]
            if gap * gap < slack * total:
                distance = 0.5 * gap * gap / total + log(total) - halves[k]
                if distance < best:
                    best, place = distance, k
                    slack = 2 * (best - least)
        group[i] = place
        last = place
    for k in range(num):
        group[kept[k]] = k


@jit
def told_apart(
    weight: Array, mean: Array, var: Array, half_log: Array, n: int, kept: Array, num: int,
    group: Array, loss: Array, nearest: Array,
) -> None:  # fmt: skip
    """Components that are heavy and unlike each other, and the nearest of them for every one."""
    at, most = 0, -inf
    for i in range(n):
        nearest[i] = inf
        group[i] = 0
        loss[i] = weight[i]
        if weight[i] > most:
            at, most = i, weight[i]
    for number in range(num):
        kept[number] = at
        here, width, half = mean[at], max(var[at], LEAST_VAR), half_log[at]
        now, after, most = at, 0, -inf
        for i in range(n):
            gap, total = mean[i] - here, max(var[i], LEAST_VAR) + width
            if gap * gap < 4 * nearest[i] * total:
                distance = 0.5 * gap * gap / total + log(0.5 * total) - half_log[i] - half
                distance = max(0.5 * distance, 0.0)
                if distance < nearest[i]:
                    nearest[i], group[i] = distance, number
                    if loss[i] > -inf:
                        loss[i] = weight[i] + log(max(-expm1(-distance), _LEAST_LOSS))
            if i == now:
                nearest[i], group[i], loss[i] = -1.0, number, -inf
            if loss[i] > most:
                after, most = i, loss[i]
        at = after


@jit
def grouped(
    weight: Array, mean: Array, var: Array, n: int, num: int, num_classes: int,
    kept: Array, group: Array, spare: Array, work: Array,
) -> None:  # fmt: skip
    """Which components are kept, and the one of them each is merged into.

    Half the logs of the variances stand in ``work``.
    """
    half_log = work[9]
    if num_classes > 2:
        told_apart(weight, mean, var, half_log, n, kept, num, group, work[0], work[1])
    else:
        heaviest(weight, n, num, kept, spare)
        nearest_kept(mean, var, half_log, n, kept, num, group, work[0], work[1], work[6])


@jit
def by_moments(
    weight: Array, mean: Array, var: Array, n: int, kept: Array, num: int, group: Array,
    share: Array, out_weight: Array, out_mean: Array, out_var: Array,
) -> None:  # fmt: skip
    """Groups of components merged into one each, by the moments of their weighted sum."""
    total = out_weight
    for k in range(num):
        total[k] = 0.0
        out_mean[k] = 0.0
        out_var[k] = 0.0
    for i in range(n):
        k = group[i]
        share[i] = exp(weight[i] - weight[kept[k]])
        total[k] += share[i]
        out_mean[k] += share[i] * (mean[i] - mean[kept[k]])
    for k in range(num):
        out_mean[k] = mean[kept[k]] + out_mean[k] / total[k]
    for i in range(n):
        k = group[i]
        offset = mean[i] - out_mean[k]
        out_var[k] += share[i] * (var[i] + offset * offset)
    for k in range(num):
        out_var[k] /= total[k]
        out_weight[k] = weight[kept[k]] + log(total[k])


@jit
def shrink(
    message: Array, n: int, num: int, num_classes: int, wide_mean: float, wide_var: float,
    density: Array, num_density: int, out: Array, out_start: int, group: Array, work: Array,
    places: Array, spare: Array,
) -> None:  # fmt: skip
    """A message with ``num`` components: the heaviest, every other one merged into its nearest.

    Moments are taken under one wide Gaussian, weights under a density, or, where it has no
    components, the same Gaussian.
    """
    weight, mean, var, values, half_log = work[2], work[3], work[4], work[5], work[9]
    half = 0.5 * log(wide_var)
    for i in range(n):
        h, m, p = message[0, i], message[1, i], message[2, i]
        spread = 1 + p * wide_var
        half_spread = 0.5 * log(spread)
        half_log[i] = half - half_spread
        p = p / spread
        gap = m - wide_mean
        mean[i] = wide_mean + wide_var * p * gap
        var[i] = wide_var / spread
        if num_density:
            weight[i] = h + relevance(m, message[2, i], density, num_density, values)
        else:
            weight[i] = h - half_spread - 0.5 * p * gap * gap
    grouped(weight, mean, var, n, num, num_classes, places, group, spare, work)
    merged_weight, merged_mean, merged_var = work[6], work[7], work[8]
    by_moments(
        weight, mean, var, n, places, num, group, work[0], merged_weight, merged_mean, merged_var
    )
    members = spare
    for k in range(num):
        members[k] = 0
    for i in range(n):
        members[group[i]] += 1
    for k in range(num):
        first = places[k]
        h, m, p = message[0, first], message[1, first], message[2, first]
        if members[k] > 1:
            # Divide the context out. Parts far apart can be wider than the context itself: what
            # is left must not be flat or turned upside down, so only the mean is right there.
            p = max(1 / merged_var[k] - 1 / wide_var, FLATTEST * p)
            shift = (merged_mean[k] - wide_mean) / wide_var
            m = merged_mean[k] + (shift / p if p > 0 else shift)
            if num_density:
                h = merged_weight[k] - relevance(m, p, density, num_density, values)
            else:
                h = merged_weight[k] - mass(p, m, wide_mean, wide_var)
        out[0, out_start + k] = h
        out[1, out_start + k] = m
        out[2, out_start + k] = p


@jit
def shrink_density(
    density: Array, n: int, num: int, num_classes: int, message: Array, start: int, num_met: int,
    work: Array, places: Array, spare: Array, group: Array,
) -> int:  # fmt: skip
    """At most ``num`` components, in place: those that overlap most with a message it meets."""
    if n <= num:
        return n
    weight, values, half_log = work[2], work[5], work[9]
    for i in range(n):
        half_log[i] = 0.5 * log(max(density[2, i], LEAST_VAR))
        for c in range(num_met):
            values[c] = message[0, start + c] + mass(
                message[2, start + c], message[1, start + c], density[1, i], density[2, i]
            )
        weight[i] = density[0, i] + log_sum(values, num_met)
    mean, var = density[1], density[2]
    grouped(weight, mean, var, n, num, num_classes, places, group, spare, work)
    merged_weight, merged_mean, merged_var = work[6], work[7], work[8]
    by_moments(
        weight, mean, var, n, places, num, group, work[0], merged_weight, merged_mean, merged_var
    )
    for k in range(num):
        for c in range(num_met):
            values[c] = message[0, start + c] + mass(
                message[2, start + c], message[1, start + c], merged_mean[k], merged_var[k]
            )
        merged_weight[k] -= log_sum(values, num_met)
    total = log_sum(merged_weight, num)
    for k in range(num):
        density[0, k] = merged_weight[k] - total
        density[1, k] = merged_mean[k]
        density[2, k] = merged_var[k]
    return num


@jit
def split(
    posterior: Array, merged: Array, start: int, num: int, parts: Array, n: int, group: Array,
    out: Array, work: Array, members: Array,
) -> None:  # fmt: skip
    """The posterior by component of a message, taken back to the parts it was merged from.

    Densities here have weights, not their logs; they sum to 1.
    """
    said_mean, said_var, highest, total = work[0], work[1], work[2], work[3]
    for k in range(num):
        members[k] = 0
        highest[k] = -inf
        total[k] = 0.0
    for i in range(n):
        members[group[i]] += 1
    for k in range(num):
        var, p = posterior[2, start + k], merged[2, start + k]
        precision = max(1 / max(var, TINY) - p, VAGUEST * p)
        gap = posterior[1, start + k] - merged[1, start + k]
        said_mean[k] = posterior[1, start + k] + p / precision * gap
        said_var[k] = 1 / precision
    for i in range(n):
        k = group[i]
        if members[k] > 1:
            out[0, i] = parts[0, i] + mass(parts[2, i], parts[1, i], said_mean[k], said_var[k])
            highest[k] = max(highest[k], out[0, i])
    for i in range(n):
        k = group[i]
        if members[k] > 1:
            out[0, i] = exp(out[0, i] - highest[k])
            total[k] += out[0, i]
    for i in range(n):
        k = group[i]
        if members[k] > 1:
            spread = 1 + parts[2, i] * said_var[k]
            pull = parts[2, i] / spread
            out[0, i] = posterior[0, start + k] * out[0, i] / total[k]
            out[1, i] = said_mean[k] + said_var[k] * pull * (parts[1, i] - said_mean[k])
            out[2, i] = said_var[k] / spread
        else:
            out[0, i] = posterior[0, start + k]
            out[1, i] = posterior[1, start + k]
            out[2, i] = posterior[2, start + k]
