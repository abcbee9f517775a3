// e = prediction - target; kind 0: squared, 1: absolute, 2: Huber's with δ.

KERNEL(regression_loss_forward, READ(T, prediction, 0), READ(T, target, 1), WRITE(float, sums, 2), VALUE(uint, n, 3),
       VALUE(uint, kind, 4), VALUE(float, delta, 5), VALUE(uint, chunk, 6)) {
    SUMS;
    const uint first = GROUP.x * chunk, end = n - first < chunk ? n : first + chunk;
    float sum = 0;
    for (uint i = first + THREAD; i < end; i += THREADS) {
        const float e = float(prediction[i]) - float(target[i]), a = e < 0 ? -e : e;
        if (kind == 0)
            sum += e * e;
        else if (kind == 1)
            sum += a;
        else
            sum += a > delta ? delta * (a - 0.5f * delta) : 0.5f * e * e;
    }
    sum = group_sum(sum);
    if (THREAD == 0)
        sums[GROUP.x] = sum;
}

// times dloss · scale.
KERNEL(regression_loss_backward, READ(T, prediction, 0), READ(T, target, 1), READ(T, dloss, 2), WRITE(T, gradient, 3),
       VALUE(uint, n, 4), VALUE(uint, kind, 5), VALUE(float, delta, 6), VALUE(float, scale, 7)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const float e = float(prediction[i]) - float(target[i]);
    float slope = 2 * e;
    if (kind == 1)
        slope = e > 0 ? 1 : e < 0 ? -1 : e;
    else if (kind == 2)
        slope = e > delta ? delta : e < -delta ? -delta : e;
    gradient[i] = T(scale * float(dloss[0]) * slope);
}
