// What the test programs share.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pgmap.h"

// Ends the program where something does not hold.
#define CHECK(holds)                                                                             \
    do {                                                                                         \
        if (!(holds)) {                                                                          \
            fprintf(stderr, "line %d: %s; %s\n", __LINE__, #holds, pgmap_last_error());          \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

// Whether the last error's message has this text.
#define SAYS(text) (strstr(pgmap_last_error(), text) != NULL)

static inline void put(struct pgmap_pool *pool, const char *name, const char *bytes,
                       uint32_t flags) {
    struct pgmap_writer *writer;
    CHECK(pgmap_create(pool, name, strlen(name), strlen(bytes), flags, &writer) == 0);
    CHECK(pgmap_write(writer, 0, bytes, strlen(bytes)) == 0);
    CHECK(pgmap_commit(writer) == 0);
}
