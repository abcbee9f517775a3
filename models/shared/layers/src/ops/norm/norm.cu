// A group a row, but for the gradients of weight and bias.

// statistics: what the mean of each row is the sum of, and 1 / √(variance + ε); the mean is 0 in RMS norm.
KERNEL(norm_forward, READ(T, x, 0), READ(T, weight, 1), READ(T, bias, 2), WRITE(T, y, 3), WRITE(float, statistics, 4),
       VALUE(uint, width, 5), VALUE(float, eps, 6), VALUE(uint, rms, 7), VALUE(uint, weighted, 8),
       VALUE(uint, biased, 9)) {
    SUMS;
    const uint row = GROUP.x;
    // Of distances from the first element: rows of one value have exactly that mean.
    const float first = rms ? 0 : float(x[row * width]);
    float sum = 0;
    for (uint i = THREAD; i < width && !rms; i += THREADS)
        sum += float(x[row * width + i]) - first;
    const float mean = first + group_sum(sum) / width;
    float left = 0, squares = 0;
    for (uint i = THREAD; i < width; i += THREADS) {
        const float centred = float(x[row * width + i]) - mean;
        left += rms ? 0 : centred;
        squares += centred * centred;
    }
    const float shift = group_sum(left) / width;
    const float variance = group_sum(squares) / width - shift * shift;
    const float scale = 1 / MATH(sqrt)((variance < 0 ? 0 : variance) + eps);
    for (uint i = THREAD; i < width; i += THREADS) {
        float v = (float(x[row * width + i]) - mean - shift) * scale;
        if (weighted)
            v *= float(weight[i]);
        if (biased)
            v += float(bias[i]);
        y[row * width + i] = T(v);
    }
    if (THREAD == 0) {
        statistics[3 * row] = mean;
        statistics[3 * row + 1] = shift;
        statistics[3 * row + 2] = scale;
    }
}

KERNEL(norm_backward, READ(T, x, 0), READ(T, dy, 1), READ(T, weight, 2), READ(float, statistics, 3), WRITE(T, dx, 4),
       VALUE(uint, width, 5), VALUE(uint, rms, 6), VALUE(uint, weighted, 7)) {
    SUMS;
    const uint row = GROUP.x;
    const float mean = statistics[3 * row], shift = statistics[3 * row + 1], scale = statistics[3 * row + 2];
    float sum = 0, product = 0;
    for (uint i = THREAD; i < width; i += THREADS) {
        const float g = float(dy[row * width + i]) * (weighted ? float(weight[i]) : 1);
        sum += rms ? 0 : g;
        product += g * (float(x[row * width + i]) - mean - shift) * scale;
    }
    sum = group_sum(sum) / width;
    product = group_sum(product) / width;
    for (uint i = THREAD; i < width; i += THREADS) {
        const float g = float(dy[row * width + i]) * (weighted ? float(weight[i]) : 1);
        const float normal = (float(x[row * width + i]) - mean - shift) * scale;
        dx[row * width + i] = T(scale * (g - sum - normal * product));
    }
}

// Sums of dy x̂ and of dy over the rows of chunk GROUP.y, for the 32 columns of GROUP.x: 8 threads a column.
KERNEL(norm_weights, READ(T, x, 0), READ(T, dy, 1), READ(float, statistics, 2), WRITE(float, sums, 3),
       VALUE(uint, rows, 4), VALUE(uint, width, 5), VALUE(uint, chunk, 6)) {
    SHARED(float, parts, 512);
    const uint lane = THREAD % 32, slot = THREAD / 32, column = 32 * GROUP.x + lane;
    const uint first = GROUP.y * chunk, end = rows - first < chunk ? rows : first + chunk;
    float dw = 0, db = 0;
    for (uint row = first + slot; row < end && column < width; row += 8) {
        const float g = float(dy[row * width + column]);
        const float normal = (float(x[row * width + column]) - statistics[3 * row] - statistics[3 * row + 1]) * statistics[3 * row + 2];
        dw += g * normal;
        db += g;
    }
    parts[THREAD] = dw;
    parts[256 + THREAD] = db;
    BARRIER();
    if (slot == 0 && column < width) {
        for (uint i = 1; i < 8; i++) {
            dw += parts[32 * i + lane];
            db += parts[256 + 32 * i + lane];
        }
        sums[(2 * GROUP.y) * width + column] = dw;
        sums[(2 * GROUP.y + 1) * width + column] = db;
    }
}

// The sums over all chunks.
KERNEL(norm_weights_total, READ(float, sums, 0), WRITE(T, dw, 1), WRITE(T, db, 2), VALUE(uint, width, 3),
       VALUE(uint, chunks, 4)) {
    const uint column = GROUP.x * THREADS + THREAD;
    if (column >= width)
        return;
    float weight = 0, bias = 0;
    for (uint i = 0; i < chunks; i++) {
        weight += sums[(2 * i) * width + column];
        bias += sums[(2 * i + 1) * width + column];
    }
    dw[column] = T(weight);
    db[column] = T(bias);
}
