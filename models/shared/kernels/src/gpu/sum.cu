// total[GROUP.x] = scale · the sum of row GROUP.x of `parts` (rows, n), by one group: in the same order every time.
KERNEL(total, READ(float, parts, 0), WRITE(T, result, 1), VALUE(uint, n, 2), VALUE(float, scale, 3)) {
    SUMS;
    float sum = 0;
    for (uint i = THREAD; i < n; i += THREADS)
        sum += parts[GROUP.x * n + i];
    sum = group_sum(sum);
    if (THREAD == 0)
        result[GROUP.x] = T(scale * sum);
}

KERNEL(fill, WRITE(T, result, 0), VALUE(uint, n, 1), VALUE(float, value, 2)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        result[i] = T(value);
}

// z += bias, for rows of `width`.
KERNEL(add_bias, WRITE(T, z, 0), READ(T, bias, 1), VALUE(uint, n, 2), VALUE(uint, width, 3)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        z[i] = T(float(z[i]) + float(bias[i % width]));
}

// Sums of x over the rows of chunk GROUP.y, for the 32 columns of GROUP.x: 8 threads a column.
KERNEL(column_sums, READ(T, x, 0), WRITE(float, sums, 1), VALUE(uint, rows, 2), VALUE(uint, width, 3),
       VALUE(uint, chunk, 4)) {
    SHARED(float, parts, 256);
    const uint lane = THREAD % 32, slot = THREAD / 32, column = 32 * GROUP.x + lane;
    const uint first = GROUP.y * chunk, end = rows - first < chunk ? rows : first + chunk;
    float sum = 0;
    for (uint row = first + slot; row < end && column < width; row += 8)
        sum += float(x[row * width + column]);
    parts[THREAD] = sum;
    BARRIER();
    if (slot == 0 && column < width) {
        for (uint i = 1; i < 8; i++)
            sum += parts[32 * i + lane];
        sums[GROUP.y * width + column] = sum;
    }
}

// The sums over all chunks.
KERNEL(column_totals, READ(float, sums, 0), WRITE(T, totals, 1), VALUE(uint, width, 2), VALUE(uint, chunks, 3)) {
    const uint column = GROUP.x * THREADS + THREAD;
    if (column >= width)
        return;
    float sum = 0;
    for (uint i = 0; i < chunks; i++)
        sum += sums[i * width + column];
    totals[column] = T(sum);
}

// Between the type at hand and floats.
KERNEL(to_floats, READ(T, x, 0), WRITE(float, y, 1), VALUE(uint, n, 2)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        y[i] = float(x[i]);
}

KERNEL(from_floats, READ(float, x, 0), WRITE(T, y, 1), VALUE(uint, n, 2)) {
    const uint i = GROUP.x * THREADS + THREAD;
    if (i < n)
        y[i] = T(x[i]);
}
