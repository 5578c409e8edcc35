/* Rows of many columns gathered into batches in one call: what a loop over numpy.take does, without its passes over
 * memory and without holding Python's lock in between. gather.py says what the arguments mean.
 *
 * A lane gives `run_rows` rows to each of a row of batches that lie `batch_rows` rows apart; the rows taken here are
 * the lane's rows from `first_row` on, counted from the first batch. Each column's values are gathered before the next
 * column's, so that the values gathered from stay in the cache.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GATHER(type)                                                                               \
    for (size_t column = 0; column < num_columns; column++) {                                      \
        const type *source = sources[column];                                                      \
        size_t row = first_row;                                                                    \
        for (size_t done = 0; done < num_rows;) {                                                  \
            size_t in_run = row % run_rows, left = run_rows - in_run;                              \
            size_t rows = left < num_rows - done ? left : num_rows - done;                         \
            type *target = (type *)targets[column] + (row / run_rows) * batch_rows + in_run;       \
            const int32_t *from = order + done;                                                    \
            for (size_t i = 0; i < rows; i++) target[i] = source[from[i]];                         \
            done += rows;                                                                          \
            row += rows;                                                                           \
        }                                                                                          \
    }

void headrace_gather(const void *const *sources, void *const *targets, size_t num_columns, size_t item_bytes,
                     const int32_t *order, size_t num_rows, size_t first_row, size_t run_rows, size_t batch_rows) {
    switch (item_bytes) {
    case 1: GATHER(uint8_t) return;
    case 2: GATHER(uint16_t) return;
    case 4: GATHER(uint32_t) return;
    case 8: GATHER(uint64_t) return;
    }
    for (size_t column = 0; column < num_columns; column++) {
        const char *source = sources[column];
        for (size_t done = 0; done < num_rows; done++) {
            size_t row = first_row + done;
            size_t place = (row / run_rows) * batch_rows + row % run_rows;
            memcpy((char *)targets[column] + place * item_bytes, source + (size_t)order[done] * item_bytes, item_bytes);
        }
    }
}
