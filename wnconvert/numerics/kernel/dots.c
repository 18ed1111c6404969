/* Products of a block's rows, or of its columns, with a vector; masks; the largest magnitude.

   A product of two values of at most 24 bits is exact as double, so only additions lose anything. */

#include "elements.h"

/* -- dots */

/* Add products, each to its own sum. */
INLINE void add_products(
    const double *restrict x, const double *restrict y, ptrdiff_t count, double *restrict high,
    double *restrict low
) {
    for (ptrdiff_t i = 0; i < count; i++) add(high + i, low + i, x[i] * y[i], 0);
}

/* Add multiples of x, each to its own sum. */
INLINE void add_multiples(
    const double *restrict x, double y, ptrdiff_t count, double *restrict high, double *restrict low
) {
    for (ptrdiff_t i = 0; i < count; i++) add(high + i, low + i, x[i] * y, 0);
}

/* One long row. */
INLINE void long_dot(
    int format, const char *x, ptrdiff_t length, const double *y, double *restrict high, double *restrict low
) {
    double run[RUN], sums[LANES] = {0}, lost[LANES] = {0};
    for (ptrdiff_t at = 0; at < length; at += RUN) {
        ptrdiff_t some = least(RUN, length - at), i = 0;
        load(format, x + at * size_of(format), some, run);
        for (; i + LANES <= some; i += LANES) add_products(run + i, y + at + i, LANES, sums, lost);
        add_products(run + i, y + at + i, some - i, sums, lost);
    }
    join(sums, lost);
    add(high, low, *sums, *lost);
}

INLINE void row_dots_of(
    int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *y,
    double *high, double *low
) {
    double run[RUN];
    for (ptrdiff_t slab = 0; slab < slabs; slab++)
        for (ptrdiff_t row = 0; row < rows; row++) {
            const char *from = x + (slab * rows + row) * inner * size_of(format);
            if (inner >= SHORT) {
                long_dot(format, from, inner, y + slab * inner, high + row, low + row);
                continue;
            }
            load(format, from, inner, run);
            for (ptrdiff_t i = 0; i < inner; i++) add(high + row, low + row, run[i] * y[slab * inner + i], 0);
        }
}

/* Short rows of a slab: as many side by side as fill the lanes, of a run of whole such. */
INLINE void short_columns(
    int format, const char *x, ptrdiff_t rows, ptrdiff_t inner, const double *y, double *restrict high,
    double *restrict low
) {
    double run[RUN], factors[RUN], sums[2 * LANES] = {0}, lost[2 * LANES] = {0};
    ptrdiff_t width = (LANES + inner - 1) / inner * inner, most = RUN / width * width, count = rows * inner;
    for (ptrdiff_t at = 0; at < count; at += most) {
        ptrdiff_t some = least(most, count - at), i = 0;
        load(format, x + at * size_of(format), some, run);
        for (ptrdiff_t row = 0; row < some / inner; row++)
            for (ptrdiff_t k = 0; k < inner; k++) factors[row * inner + k] = y[at / inner + row];
        for (; i + width <= some; i += width) add_products(run + i, factors + i, width, sums, lost);
        add_products(run + i, factors + i, some - i, sums, lost);
    }
    for (ptrdiff_t i = 0; i < width; i++) add(high + i % inner, low + i % inner, sums[i], lost[i]);
}

INLINE void column_dots_of(
    int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *y,
    double *high, double *low
) {
    double run[RUN];
    if (inner == 1) {
        row_dots_of(format, x, 1, slabs, rows, y, high, low);
        return;
    }
    for (ptrdiff_t slab = 0; slab < slabs; slab++) {
        const char *from = x + slab * rows * inner * size_of(format);
        double *top = high + slab * inner, *rest = low + slab * inner;
        if (inner < SHORT) {
            short_columns(format, from, rows, inner, y, top, rest);
            continue;
        }
        for (ptrdiff_t row = 0; row < rows; row++)
            for (ptrdiff_t at = 0; at < inner; at += RUN) {
                ptrdiff_t some = least(RUN, inner - at);
                load(format, from + (row * inner + at) * size_of(format), some, run);
                add_multiples(run, y[row], some, top + at, rest + at);
            }
    }
}

/* -- masks */

/* Where a mask holds 1; tells whether it holds anything else but +0. */
#define KEPT(type)                                                                                       \
    INLINE int kept_##type(const type *mask, ptrdiff_t count, type one, uint8_t *restrict kept) {        \
        type others = 0;                                                                                 \
        for (ptrdiff_t i = 0; i < count; i++) {                                                          \
            kept[i] = mask[i] == one;                                                                    \
            others |= mask[i] == one ? 0 : mask[i];                                                      \
        }                                                                                                \
        return others != 0;                                                                              \
    }
KEPT(unaligned_word)
KEPT(unaligned_half)

INLINE int kept_of(int format, const char *mask, ptrdiff_t count, uint8_t *restrict kept) {
    if (format == FLOAT32) return kept_unaligned_word((const unaligned_word *)mask, count, 0x3F800000, kept);
    return kept_unaligned_half(
        (const unaligned_half *)mask, count, format == FLOAT16 ? 0x3C00 : 0x3F80, kept
    );
}

/* Values where they are kept, else zeros of their signs, but NaN for what is not finite. */
#define SELECT(type)                                                                                     \
    INLINE void select_##type(                                                                           \
        const type *x, const uint8_t *kept, ptrdiff_t count, type infinite, type nan, type sign,         \
        type *restrict out                                                                               \
    ) {                                                                                                  \
        for (ptrdiff_t i = 0; i < count; i++) {                                                          \
            type pruned = (x[i] & infinite) == infinite ? nan : x[i] & sign;                             \
            out[i] = kept[i] ? x[i] : pruned;                                                            \
        }                                                                                                \
    }
SELECT(unaligned_word)
SELECT(unaligned_half)

INLINE void select_of(int format, const char *x, const uint8_t *kept, ptrdiff_t count, char *restrict out) {
    static const uint16_t infinite[] = {0, 0x7C00, 0x7F80}, nan[] = {0, 0x7E00, 0x7FC0};
    if (format == FLOAT32)
        select_unaligned_word(
            (const unaligned_word *)x, kept, count, 0x7F800000, 0x7FC00000, 0x80000000, (unaligned_word *)out
        );
    else
        select_unaligned_half(
            (const unaligned_half *)x, kept, count, infinite[format], nan[format], 0x8000,
            (unaligned_half *)out
        );
}

/* -- what the library gives */

#define DOTS(of, name)                                                                                   \
    static void name(                                                                                    \
        int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *y,    \
        double *high, double *low                                                                        \
    ) {                                                                                                  \
        of(format, x, slabs, rows, inner, y, high, low);                                                 \
    }
#define ROW_DOTS(name) DOTS(row_dots_of, name)
#define COLUMN_DOTS(name) DOTS(column_dots_of, name)
#define KEEPING(name)                                                                                    \
    static int name(int format, const char *mask, ptrdiff_t count, uint8_t *kept) {                      \
        return kept_of(format, mask, count, kept);                                                       \
    }
#define SELECTED(name)                                                                                   \
    static void name(int format, const char *x, const uint8_t *kept, ptrdiff_t count, char *out) {       \
        select_of(format, x, kept, count, out);                                                          \
    }
#define LARGEST(name)                                                                                    \
    static uint32_t name(int format, const char *x, ptrdiff_t count) {                                   \
        return largest_of(format, x, count);                                                             \
    }

VERSIONS(ROW_DOTS, row_dots)
VERSIONS(COLUMN_DOTS, column_dots)
VERSIONS(KEEPING, keeping)
VERSIONS(SELECTED, selected)
VERSIONS(LARGEST, largest)

/* Add the products of each row with y[slabs][inner] to high + low. */
void wnconvert_row_dots(
    int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *y,
    double *high, double *low
) {
    BEST(row_dots)(format, x, slabs, rows, inner, y, high, low);
}

/* Add the products of each column, [slabs][inner], with y[rows] to high + low. */
void wnconvert_column_dots(
    int format, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *y,
    double *high, double *low
) {
    BEST(column_dots)(format, x, slabs, rows, inner, y, high, low);
}

/* Write where a mask is 1 into `kept`, as 1; 0 if it is not all +0 and 1, and the rest is void. */
int wnconvert_kept(int format, const char *mask, ptrdiff_t count, uint8_t *kept) {
    return !BEST(keeping)(format, mask, count, kept);
}

/* Write values times a mask of 0 and 1 into `out`. */
void wnconvert_select(int format, const char *x, ptrdiff_t count, const uint8_t *kept, char *out) {
    BEST(selected)(format, x, kept, count, out);
}

/* The code of the largest magnitude: at least that of infinity where not all values are finite. */
uint32_t wnconvert_largest(int format, const char *x, ptrdiff_t count) {
    return BEST(largest)(format, x, count);
}
