/* Products of values and a factor for each row, and casts, each rounded once.

   A block is a contiguous run of slabs x rows x inner elements of float32, float16 or bfloat16, in any
   alignment. It is worked on in runs of at most RUN elements. */

#include "elements.h"

/* -- products */

/* A format: the bits of a double that it drops, and the least normal number, which has code 1 << (52 - dropped). */
typedef struct {
    int dropped;
    double normal;
} Format;

INLINE Format format_of(int format) {
    static const Format formats[] = {{29, 0x1p-126}, {42, 0x1p-14}, {45, 0x1p-126}};
    return formats[format];
}

/* A magnitude as a place on the scale of codes, with `dropped` bits behind the point. Below the least normal
   number its code is that of the sum of both, which has the exponent that subnormal numbers share. */
INLINE uint64_t place_of(double y, double normal) {
    double magnitude = double_of(bits_of(y) & ~(UINT64_C(1) << 63));
    int below = magnitude < normal;
    return bits_of(magnitude + (below ? normal : 0.0)) - bits_of(normal) +
           (below ? 0 : UINT64_C(1) << 52);
}

/* Round y half up, and tell whether an interval that ends in one of them holds a midpoint. */
INLINE int round_run(int format, const double *restrict y, ptrdiff_t count, int64_t width, char *restrict to) {
    const Format form = format_of(format);
    const uint64_t half = UINT64_C(1) << (form.dropped - 1);
    int64_t open = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        uint64_t place = place_of(y[i], form.normal), sign = bits_of(y[i]) >> 63;
        uint64_t code = (place + half) >> form.dropped;
        open |= (int64_t)((place + 1 - half) & (2 * half - 1)) <= width + 2;
        if (format == FLOAT32)
            ((unaligned_word *)to)[i] = (uint32_t)(code | sign << 31);
        else
            ((unaligned_half *)to)[i] = (uint16_t)(code | sign << 15);
    }
    return open != 0;
}

/* The open elements of a run: their places from `first` on, and the codes below the midpoints. Zeros of a run
   that has centres are open. */
INLINE ptrdiff_t find_open(
    int format, const double *y, ptrdiff_t count, int64_t width, ptrdiff_t first, int has_centres,
    int64_t *places, uint32_t *codes, ptrdiff_t room
) {
    const Format form = format_of(format);
    const uint64_t half = UINT64_C(1) << (form.dropped - 1);
    ptrdiff_t found = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        uint64_t place = place_of(y[i], form.normal);
        if ((int64_t)((place + 1 - half) & (2 * half - 1)) > width + 2 && !(has_centres && !place)) continue;
        if (found < room) {
            places[found] = first + i;
            codes[found] = (uint32_t)(place >> form.dropped);
        }
        found++;
    }
    return found;
}

/* Multiply a run that starts at element `first` of a block by the factors of its rows. */
INLINE void multiply(
    double *restrict y, ptrdiff_t count, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t inner,
    const double *restrict factors
) {
    ptrdiff_t length = inner == 1 ? rows : inner, offset = first % length, row = first / inner % rows;
    for (ptrdiff_t i = 0; i < count; offset = 0) {
        ptrdiff_t some = least(length - offset, count - i);
        if (inner == 1) {
            for (ptrdiff_t k = 0; k < some; k++) y[i + k] *= factors[offset + k];
        } else {
            double factor = factors[row];
            for (ptrdiff_t k = 0; k < some; k++) y[i + k] *= factor;
            row = row + 1 < rows ? row + 1 : 0;
        }
        i += some;
    }
}

/* For each row a centre + rest, and the least magnitude that counts of what is left of a value; or none. */
typedef struct {
    const double *centre, *rest, *least;
} Centres;

/* Multiply what is left of values of one row without its centre; where that is too little, 0 is taken for it,
   and that there is such a value is told. */
INLINE int multiply_row(
    double *restrict y, ptrdiff_t count, double centre, double rest, double smallest, double factor
) {
    int64_t lowest = INT64_MAX;
    for (ptrdiff_t i = 0; i < count; i++) {
        double left = (y[i] - centre) - rest;
        int64_t size = (int64_t)(bits_of(left) & ~(UINT64_C(1) << 63));
        lowest = size < lowest ? size : lowest;
        y[i] = left * factor;
    }
    if (lowest >= (int64_t)bits_of(smallest)) return 0;
    double least_product = double_of(bits_of(smallest * factor) & ~(UINT64_C(1) << 63));
    for (ptrdiff_t i = 0; i < count; i++)
        if (double_of(bits_of(y[i]) & ~(UINT64_C(1) << 63)) <= least_product) y[i] = 0.0 * factor;
    return 1;
}

/* The same as `multiply`, of what is left of values; tells whether one of them is 0. */
INLINE int multiply_left(
    double *restrict y, ptrdiff_t count, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t inner, Centres its,
    const double *restrict factors
) {
    const double *restrict centres = its.centre, *restrict rests = its.rest, *restrict leasts = its.least;
    ptrdiff_t length = inner == 1 ? rows : inner, offset = first % length, row = first / inner % rows;
    int64_t near = 0;
    for (ptrdiff_t i = 0; i < count; offset = 0) {
        ptrdiff_t some = least(length - offset, count - i);
        if (inner == 1) {
            for (ptrdiff_t k = 0, at = offset; k < some; k++, at++) {
                double left = (y[i + k] - centres[at]) - rests[at];
                int is_near = double_of(bits_of(left) & ~(UINT64_C(1) << 63)) < leasts[at];
                near |= is_near;
                y[i + k] = (is_near ? 0.0 : left) * factors[at];
            }
        } else {
            near |= multiply_row(y + i, some, centres[row], rests[row], leasts[row], factors[row]);
            row = row + 1 < rows ? row + 1 : 0;
        }
        i += some;
    }
    return near != 0;
}

INLINE ptrdiff_t products_of(
    int from, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, Centres centres,
    const double *factors, int64_t width, int to, char *out, int64_t *places, uint32_t *codes, ptrdiff_t room
) {
    double run[RUN];
    ptrdiff_t count = slabs * rows * inner, found = 0;
    for (ptrdiff_t at = 0; at < count; at += RUN) {
        ptrdiff_t some = least(RUN, count - at);
        load(from, x + at * size_of(from), some, run);
        int near = 0;
        if (centres.centre)
            near = multiply_left(run, some, at, rows, inner, centres, factors);
        else
            multiply(run, some, at, rows, inner, factors);
        char *there = out + at * size_of(to);
        int open = to == FLOAT32   ? round_run(FLOAT32, run, some, width, there)
                   : to == FLOAT16 ? round_run(FLOAT16, run, some, width, there)
                                   : round_run(BFLOAT16, run, some, width, there);
        if (open || near) {
            ptrdiff_t left = found < room ? room - found : 0, done = room - left;
            found += find_open(to, run, some, width, at, centres.centre != 0, places + done, codes + done, left);
        }
    }
    return found;
}

/* -- casts */

/* Round values to nearest, ties to even; tells whether one of them is not finite then. Near a tie the place of
   a value of at most 24 bits is exact. */
INLINE int cast_run(int format, const double *restrict y, ptrdiff_t count, char *restrict to) {
    const Format form = format_of(format);
    const uint64_t below = (UINT64_C(1) << (form.dropped - 1)) - 1;
    const uint64_t infinite = (format == FLOAT16 ? UINT64_C(31) : UINT64_C(255)) << (52 - form.dropped);
    int64_t large = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        uint64_t place = place_of(y[i], form.normal), sign = bits_of(y[i]) >> 63;
        uint64_t code = (place + below + (place >> form.dropped & 1)) >> form.dropped;
        large |= (int64_t)code >= (int64_t)infinite;
        if (format == FLOAT32)
            ((unaligned_word *)to)[i] = (uint32_t)(code | sign << 31);
        else
            ((unaligned_half *)to)[i] = (uint16_t)(code | sign << 15);
    }
    return large != 0;
}

INLINE int cast_of(int from, const char *x, ptrdiff_t count, int to, char *out) {
    double run[RUN];
    int large = 0;
    for (ptrdiff_t at = 0; at < count && !large; at += RUN) {
        ptrdiff_t some = least(RUN, count - at);
        char *there = out + at * size_of(to);
        load(from, x + at * size_of(from), some, run);
        large = to == FLOAT32   ? cast_run(FLOAT32, run, some, there)
                : to == FLOAT16 ? cast_run(FLOAT16, run, some, there)
                                : cast_run(BFLOAT16, run, some, there);
    }
    return large;
}

/* -- what the library gives: each function in the version that suits the processor */

#define PRODUCTS(name)                                                                                   \
    static ptrdiff_t name(                                                                               \
        int from, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, Centres centres,      \
        const double *factors, int64_t width, int to, char *out, int64_t *places, uint32_t *codes,       \
        ptrdiff_t room                                                                                   \
    ) {                                                                                                  \
        return products_of(                                                                              \
            from, x, slabs, rows, inner, centres, factors, width, to, out, places, codes, room           \
        );                                                                                               \
    }
#define CAST(name)                                                                                       \
    static int name(int from, const char *x, ptrdiff_t count, int to, char *out) {                       \
        return cast_of(from, x, count, to, out);                                                         \
    }

VERSIONS(PRODUCTS, products)
VERSIONS(CAST, cast)

/* Tests take it down. */
int wnconvert_level = 2;

void wnconvert_take(int level) { wnconvert_level = level; }

/* That of the functions below, as library.py knows them: a new one for every change of how they are called. */
int wnconvert_version(void) { return 3; }

/* The text of which this was made. */
const char *wnconvert_source(void) { return SOURCE; }

/* Write products, of values less their centres if there are any, into `out`, and the open ones, as far as there
   is room; gives the number of all. */
ptrdiff_t wnconvert_products(
    int from, const char *x, ptrdiff_t slabs, ptrdiff_t rows, ptrdiff_t inner, const double *centre,
    const double *rest, const double *smallest, const double *factors, int64_t width, int to, char *out,
    int64_t *places, uint32_t *codes, ptrdiff_t room
) {
    Centres centres = {centre, rest, smallest};
    return BEST(products)(from, x, slabs, rows, inner, centres, factors, width, to, out, places, codes, room);
}

/* Write values into `out` in another format; 0 if not all of them are finite there, so not all are written. */
int wnconvert_cast(int from, const char *x, ptrdiff_t count, int to, char *out) {
    return !BEST(cast)(from, x, count, to, out);
}
