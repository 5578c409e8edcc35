/* Rows of many columns gathered into batches in one call: what a loop over numpy.take does, without its passes over
 * memory and without taking Python's lock in between. gather.py says what the arguments mean.
 *
 * Column after column, a slab of rows at a time: the values gathered from stay in the cache, and those of the next
 * column, which lie in main memory since they were decoded, are fetched into it meanwhile (a third off the time).
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__ /* past the cache: a batch is read much later, and its place need not be fetched to be written */
#include <immintrin.h>
#define PUT(target, value)                                                                               \
    (sizeof *(target) == 4   ? _mm_stream_si32((int *)(target), (int)(value))                            \
     : sizeof *(target) == 8 ? _mm_stream_si64((long long *)(target), (long long)(value))                \
                             : (void)(*(target) = (value)))
#define ALL_PUT _mm_sfence()
#else
#define PUT(target, value) (*(target) = (value))
#define ALL_PUT
#endif

enum { SLAB_ROWS = 1 << 13, LINE_BYTES = 64 };

typedef struct {
    size_t first_row, run_rows, batch_rows;
} lane_share;

/* Row `row` of the lane, counted from the first batch, is this row of the batches. */
static size_t place(lane_share share, size_t row) {
    return (row / share.run_rows) * share.batch_rows + row % share.run_rows;
}

/* `ahead` lines of the next column are asked for along the way. */
#define GATHER(type)                                                                                     \
    for (size_t column = 0; column < num_columns; column++) {                                            \
        const type *source = sources[column];                                                            \
        size_t is_last = column + 1 == num_columns, per_line = LINE_BYTES / sizeof(type);                \
        size_t lines = is_last ? 0 : SLAB_ROWS / per_line, ahead = 1 + lines * per_line / num_rows;      \
        const char *next = is_last ? NULL : (const char *)((const type *)sources[column + 1] + slab);    \
        for (size_t done = 0, rows; done < num_rows; done += rows) {                                     \
            size_t row = share.first_row + done, left_in_run = share.run_rows - row % share.run_rows;    \
            rows = left_in_run < num_rows - done ? left_in_run : num_rows - done;                        \
            type *target = (type *)targets[column] + place(share, row);                                  \
            const int32_t *from = order + done;                                                          \
            size_t i = 0;                                                                                \
            for (; i + per_line <= rows; i += per_line) {                                                \
                for (size_t k = 0; k < ahead && lines; k++, lines--, next += LINE_BYTES)                 \
                    __builtin_prefetch(next, 0, 2);                                                      \
                for (size_t k = 0; k < per_line; k++) PUT(&target[i + k], source[from[i + k]]);          \
            }                                                                                            \
            for (; i < rows; i++) target[i] = source[from[i]];                                           \
        }                                                                                                \
    }

/* The rows `order` all lie in the slab that begins with row `slab`. */
static void gather_slab(const void *const *sources, void *const *targets, size_t num_columns, size_t item_bytes,
                        const int32_t *order, size_t num_rows, size_t slab, lane_share share) {
    switch (item_bytes) {
    case 1: GATHER(uint8_t) return;
    case 2: GATHER(uint16_t) return;
    case 4: GATHER(uint32_t) return;
    case 8: GATHER(uint64_t) return;
    }
    for (size_t column = 0; column < num_columns; column++)
        for (size_t i = 0; i < num_rows; i++)
            memcpy((char *)targets[column] + place(share, share.first_row + i) * item_bytes,
                   (const char *)sources[column] + (size_t)order[i] * item_bytes, item_bytes);
}

void headrace_gather(const void *const *sources, void *const *targets, size_t num_columns, size_t item_bytes,
                     const int32_t *order, size_t num_rows, size_t first_row, size_t run_rows, size_t batch_rows) {
    for (size_t done = 0, rows; done < num_rows; done += rows) {
        size_t slab = (size_t)order[done] / SLAB_ROWS;
        for (rows = 1; done + rows < num_rows && (size_t)order[done + rows] / SLAB_ROWS == slab;) rows++;
        lane_share share = {first_row + done, run_rows, batch_rows};
        gather_slab(sources, targets, num_columns, item_bytes, order + done, rows, slab * SLAB_ROWS, share);
    }
    ALL_PUT;
}
