/* Sums of rows and of their squares. */

#include "elements.h"

/* Slabs that are narrower are summed side by side. */
#define NARROW 256

/* -- sums */

/* A sum is that of the first or of the second powers of values, as `power` says. */
INLINE double powered(int power, double x) { return power == 2 ? x * x : x; }

/* Add values, each to its own sum. */
INLINE void add_each(
    int power, const double *restrict x, ptrdiff_t count, double *restrict high, double *restrict low
) {
    for (ptrdiff_t i = 0; i < count; i++) add(high + i, low + i, powered(power, x[i]), 0);
}

/* Add all values of x, which are followed by room for LANES - 1 more, to one sum. */
INLINE void add_all(int power, double *x, ptrdiff_t count, double *restrict high, double *restrict low) {
    double sums[LANES] = {0}, lost[LANES] = {0};
    for (ptrdiff_t i = count; i % LANES; i++) x[i] = 0;
    for (ptrdiff_t at = 0; at < count; at += LANES) add_each(power, x + at, LANES, sums, lost);
    join(sums, lost);
    add(high, low, *sums, *lost);
}

/* -- squares of long rows

   Squares of values of at most 24 bits are exact. Sums that begin at an anchor, a power of two that no square
   exceeds, are never less than what is added, so what an addition loses is exact and found with two subtractions
   (FastTwoSum: Dekker 1971, "A floating-point technique for extending the available precision"). Taking the anchor
   away is exact: a sum and the anchor below it are multiples of the sum's last place. Only what is lost is added
   with roundings: n squares of one sum lose n·u·s at most, u = 2^-53, s all that was added and the anchor, and that
   is added up within n·u of itself. An anchor is at most four times the largest square of its row, so LANES sums
   are off by (4·LANES + 1)·n^2·u^2 of the sum of the row at most, which is less than `_error` of compiled.py. */

/* Elements of which the largest is looked for before they are added, while the first cache holds them. */
#define STRETCH 1024

/* Add the squares of x, as many as are whole LANES, each to one of LANES sums that begin at an anchor. */
#define ADD_SQUARES(kind, name)                                                                          \
    INLINE void name(const kind *x, ptrdiff_t count, double *restrict sums, double *restrict lost) {     \
        double high[LANES], low[LANES];                                                                  \
        memcpy(high, sums, sizeof high);                                                                 \
        memcpy(low, lost, sizeof low);                                                                   \
        for (ptrdiff_t at = 0; at < count; at += LANES)                                                  \
            for (int i = 0; i < LANES; i++) {                                                            \
                double value = x[at + i], square = value * value, sum = high[i] + square;                \
                low[i] += square - (sum - high[i]);                                                      \
                high[i] = sum;                                                                           \
            }                                                                                            \
        memcpy(sums, high, sizeof high);                                                                 \
        memcpy(lost, low, sizeof low);                                                                   \
    }
ADD_SQUARES(unaligned_float, add_squares_of_floats)
ADD_SQUARES(double, add_squares)

/* A power of two above the squares of all values, at most four times the largest; 0 where not all are finite. */
INLINE double above_squares(int format, const char *x, ptrdiff_t count) {
    uint32_t word = largest_of(format, x, count);
    uint16_t half = (uint16_t)word;
    double largest;
    load(format, format == FLOAT32 ? (const char *)&word : (const char *)&half, 1, &largest);
    uint64_t exponent = bits_of(largest) >> 52;
    return largest > 0 && largest - largest == 0 ? double_of((2 * exponent - 1023 + 2) << 52) : 0;
}

/* Take the anchor away from LANES sums and add them to one; they begin at another. */
INLINE void begin_again(
    double *restrict sums, double *restrict lost, double anchor, double next, double *high, double *low
) {
    for (int i = 0; i < LANES; i++) sums[i] -= anchor;
    join(sums, lost);
    add(high, low, *sums, *lost);
    for (int i = 0; i < LANES; i++) {
        sums[i] = next;
        lost[i] = 0;
    }
}

/* Add the squares of one row, or of what lies of it in a slab. */
INLINE void add_long(int format, const char *x, ptrdiff_t count, double *restrict high, double *restrict low) {
    double run[STRETCH], sums[LANES] = {0}, lost[LANES] = {0}, anchor = 0;
    for (ptrdiff_t at = 0; at < count; at += STRETCH) {
        ptrdiff_t some = least(STRETCH, count - at), direct = format == FLOAT32 ? some / LANES * LANES : 0;
        const char *from = x + at * size_of(format), *rest = from + direct * size_of(format);
        double above = above_squares(format, from, some);
        if (above > anchor) {
            begin_again(sums, lost, anchor, above, high, low);
            anchor = above;
        }
        if (direct) add_squares_of_floats((const unaligned_float *)from, direct, sums, lost);
        load(format, rest, some - direct, run);
        for (ptrdiff_t i = some - direct; i % LANES; i++) run[i] = 0;
        add_squares(run, some - direct, sums, lost);
    }
    begin_again(sums, lost, anchor, 0, high, low);
}

/* -- sums of values */

/* Add all values of x, whose magnitudes add up to half of `start` at most, a power of two: sums that begin there
   keep its exponent, so what an addition loses is found with less (Dekker's FastTwoSum). */
INLINE void add_values(
    double *x, ptrdiff_t count, double start, double *restrict high, double *restrict low
) {
    double sums[LANES], lost[LANES] = {0};
    for (ptrdiff_t i = count; i % LANES; i++) x[i] = 0;
    for (ptrdiff_t i = 0; i < LANES; i++) sums[i] = start;
    for (ptrdiff_t at = 0; at < count; at += LANES)
        for (ptrdiff_t i = 0; i < LANES; i++) {
            double sum = sums[i] + x[at + i];
            lost[i] += x[at + i] - (sum - sums[i]);
            sums[i] = sum;
        }
    for (ptrdiff_t i = 0; i < LANES; i++) sums[i] -= start;
    join(sums, lost);
    add(high, low, *sums, *lost);
}

/* A power of two that is at least twice √(count·square), and at most eight times as large. */
INLINE double above_root(double square, ptrdiff_t count) {
    uint64_t exponent = bits_of(square * (double)count) >> 52;
    return square > 0 ? double_of(((exponent + 1025 + 4) / 2) << 52) : 0;
}

/* Slabs side by side, as many as fit a run: a sum for each place in it, then those of each row. */
INLINE void narrow_sums(
    int power, int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, double *high,
    double *low
) {
    double run[RUN], sums[RUN] = {0}, lost[RUN] = {0};
    ptrdiff_t width = rows * inner, most = RUN / width * width, count = slabs * width;
    for (ptrdiff_t at = 0; at < count; at += most) {
        ptrdiff_t some = least(most, count - at);
        load(format, x + at * size_of(format), some, run);
        add_each(power, run, some, sums, lost);
    }
    for (ptrdiff_t at = 0; at < most; at++) {
        ptrdiff_t row = at % width / inner;
        add(high + row, low + row, sums[at], lost[at]);
    }
}

/* Short rows, one element after the other. */
INLINE void short_sums(
    int power, int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, double *high,
    double *low
) {
    double run[RUN];
    ptrdiff_t most = RUN / inner * inner, count = slabs * rows * inner, row = 0;
    for (ptrdiff_t at = 0; at < count; at += most) {
        ptrdiff_t some = least(most, count - at);
        load(format, x + at * size_of(format), some, run);
        for (ptrdiff_t i = 0; i < some; i += inner) {
            for (ptrdiff_t k = 0; k < inner; k++) add(high + row, low + row, powered(power, run[i + k]), 0);
            row = row + 1 < rows ? row + 1 : 0;
        }
    }
}

/* Rows of some length. */
INLINE void long_sums(
    int power, int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner,
    const double *squares, double *high, double *low
) {
    double run[RUN + LANES];
    for (ptrdiff_t each = 0; each < slabs * rows; each++) {
        ptrdiff_t row = each % rows;
        const char *from = x + each * inner * size_of(format);
        if (power == 2 && inner > RUN) {
            add_long(format, from, inner, high + row, low + row);
            continue;
        }
        for (ptrdiff_t at = 0; at < inner; at += RUN) {
            ptrdiff_t some = least(RUN, inner - at);
            load(format, from + at * size_of(format), some, run);
            if (power == 2)
                add_all(power, run, some, high + row, low + row);
            else
                add_values(run, some, above_root(squares[row], slabs * inner), high + row, low + row);
        }
    }
}

/* Many rows, of one element in each slab. */
INLINE void side_by_side(
    int power, int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, double *high, double *low
) {
    double run[RUN];
    for (ptrdiff_t slab = 0; slab < slabs; slab++)
        for (ptrdiff_t row = 0; row < rows; row += RUN) {
            ptrdiff_t some = least(RUN, rows - row);
            load(format, x + (slab * rows + row) * size_of(format), some, run);
            add_each(power, run, some, high + row, low + row);
        }
}

/* The sum of each row as high + low; those of values may be told the sums of their squares. */
INLINE void sums_of(
    int power, int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner,
    const double *squares, double *high, double *low
) {
    memset(high, 0, rows * sizeof *high);
    memset(low, 0, rows * sizeof *low);
    if (rows == 1) {
        inner *= slabs;
        slabs = 1;
    }
    if (slabs > 1 && rows * inner <= NARROW)
        narrow_sums(power, format, x, slabs, rows, inner, high, low);
    else if (inner == 1)
        side_by_side(power, format, x, slabs, rows, high, low);
    else if (inner < SHORT)
        short_sums(power, format, x, slabs, rows, inner, high, low);
    else
        long_sums(power, format, x, slabs, rows, inner, squares, high, low);
    for (ptrdiff_t row = 0; row < rows; row++) {
        if (high[row] - high[row] != 0) low[row] = 0; /* infinite or NaN */
        double sum = high[row] + low[row];
        low[row] = low[row] - (sum - high[row]);
        if (sum - sum != 0) low[row] = 0;
        high[row] = sum;
    }
}

/* -- what the library gives */

#define SUMS(name)                                                                                       \
    static void name(                                                                                    \
        int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner,                     \
        const double *squares, double *high, double *low                                                 \
    ) {                                                                                                  \
        squares ? sums_of(1, format, x, slabs, rows, inner, squares, high, low)                          \
                : sums_of(2, format, x, slabs, rows, inner, 0, high, low);                               \
    }
VERSIONS(SUMS, sums)

/* Σv² of each row as high + low. */
void wnconvert_sums(
    int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, double *high, double *low
) {
    BEST(sums)(format, x, slabs, rows, inner, 0, high, low);
}

/* Σv of each row as high + low, given Σv²; where not all of it is finite, these mean nothing. */
void wnconvert_totals(
    int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *squares,
    double *high, double *low
) {
    BEST(sums)(format, x, slabs, rows, inner, squares, high, low);
}

