// Formulas of mod.rs, each element by its own thread.

struct Update {
    // Multiplies the gradient: the clipping factor.
    float scale;
    // p's factor (decoupled decay), and its share of the gradient (coupled decay).
    float keep, coupled;
    float lr;
    // Adam: decays of the moments with what is left to 1, √(1 - β₂ᵗ), ε. RMSprop: α and 1 - α as the second ones.
    float beta1, rest1, beta2, rest2, root_scale, eps;
    float momentum;
    uint nesterov;
    // Whether there is a momentum buffer.
    uint buffered;
};

KERNEL(adam, WRITE(float, p, 0), READ(float, grad, 1), WRITE(float, m, 2), WRITE(float, v, 3), VALUE(uint, n, 4),
       VALUE(Update, u, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const float g = grad[i] * u.scale + u.coupled * p[i];
    m[i] = u.beta1 * m[i] + u.rest1 * g;
    v[i] = u.beta2 * v[i] + u.rest2 * g * g;
    p[i] = p[i] * u.keep - u.lr * m[i] / (MATH(sqrt)(v[i]) * u.root_scale + u.eps);
}

KERNEL(sgd, WRITE(float, p, 0), READ(float, grad, 1), WRITE(float, b, 2), VALUE(uint, n, 3), VALUE(Update, u, 4)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const float g = grad[i] * u.scale + u.coupled * p[i];
    float direction = g;
    if (u.buffered) {
        b[i] = u.momentum * b[i] + g;
        direction = u.nesterov ? g + u.momentum * b[i] : b[i];
    }
    p[i] -= u.lr * direction;
}

KERNEL(rmsprop, WRITE(float, p, 0), READ(float, grad, 1), WRITE(float, v, 2), WRITE(float, b, 3), VALUE(uint, n, 4),
       VALUE(Update, u, 5)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i >= n)
        return;
    const float g = grad[i] * u.scale + u.coupled * p[i];
    v[i] = u.beta2 * v[i] + u.rest2 * g * g;
    float direction = g / (MATH(sqrt)(v[i]) + u.eps);
    if (u.buffered) {
        b[i] = u.momentum * b[i] + direction;
        direction = b[i];
    }
    p[i] -= u.lr * direction;
}

// parts[at + GROUP.x]: the sum of squares of a chunk.
KERNEL(squares, READ(T, x, 0), WRITE(float, parts, 1), VALUE(uint, at, 2), VALUE(uint, n, 3), VALUE(uint, chunk, 4)) {
    SUMS;
    const uint first = GROUP.x * chunk, end = n - first < chunk ? n : first + chunk;
    float sum = 0;
    for (uint i = first + THREAD; i < end; i += THREADS)
        sum += float(x[i]) * float(x[i]);
    sum = group_sum(sum);
    if (THREAD == 0)
        parts[at + GROUP.x] = sum;
}
