// A group a row; the least target there is does not count, and another that is no class makes NaN. logs: the largest logit of each row, and ln Σ exp of what is above it.

#define IGNORED (-9223372036854775807 - 1)

KERNEL(cross_entropy_forward, READ(T, logits, 0), READ(i64, targets, 1), WRITE(float, losses, 2), WRITE(float, logs, 3),
       VALUE(uint, width, 4), VALUE(float, smoothing, 5)) {
    SUMS;
    const uint row = GROUP.x, first = row * width;
    const i64 target = targets[row];
    float max = -INFINITY, all = 0;
    for (uint i = THREAD; i < width; i += THREADS) {
        max = larger(max, float(logits[first + i]));
    }
    max = group_max(max);
    const float shift = max == -INFINITY ? 0 : max;
    float sum = 0;
    for (uint i = THREAD; i < width; i += THREADS) {
        const float centred = float(logits[first + i]) - shift;
        sum += MATH(exp)(centred);
        all += centred;
    }
    sum = group_sum(sum);
    all = group_sum(all);
    if (THREAD == 0) {
        const float log_sum = MATH(log)(sum);
        logs[2 * row] = shift;
        logs[2 * row + 1] = log_sum;
        float loss = target == IGNORED ? 0 : NAN;
        if (target >= 0 && target < width) {
            loss = log_sum - (1 - smoothing) * (float(logits[first + target]) - shift);
            if (smoothing > 0)
                loss -= smoothing * all / width;
        }
        losses[row] = loss;
    }
}

KERNEL(cross_entropy_backward, READ(T, logits, 0), READ(i64, targets, 1), READ(float, logs, 2), READ(T, dloss, 3),
       WRITE(T, dlogits, 4), VALUE(uint, width, 5), VALUE(uint, count, 6), VALUE(float, smoothing, 7)) {
    const uint row = GROUP.x, first = row * width;
    const i64 target = targets[row];
    const float scale = target == IGNORED ? 0 : float(dloss[0]) / count;
    for (uint i = THREAD; i < width; i += THREADS) {
        float g = 0;
        if (target != IGNORED) {
            g = MATH(exp)(float(logits[first + i]) - logs[2 * row] - logs[2 * row + 1]) - smoothing / width;
            if (i == target)
                g -= 1 - smoothing;
        }
        dlogits[first + i] = T(scale * g);
    }
}
