// What a process does that connected read-only, beside one that did not: run with the owner's
// socket.

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "program.h"

static struct pgmap_pool *reader, *writer;
static sigjmp_buf before_the_store;

static void refused(int signal) { siglongjmp(before_the_store, signal); }

// The signal of a store to this byte; 0 if there is none.
static int signal_of_a_store(void *address) {
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_handler = refused;
    CHECK(sigaction(SIGSEGV, &action, &old) == 0);
    int caught = sigsetjmp(before_the_store, 1);
    if (caught == 0)
        *(volatile char *)address = 'x';
    CHECK(sigaction(SIGSEGV, &old, NULL) == 0);
    return caught;
}

// Whether /proc/self/maps says that this byte is mapped with these permissions.
static int is_mapped(const void *address, const char *permissions) {
    char line[512], found[8];
    int is_so = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx %7s", &start, &end, found) == 3 &&
            start <= (unsigned long)address && (unsigned long)address < end)
            is_so = strcmp(found, permissions) == 0;
    }
    fclose(maps);
    return is_so;
}

static struct pgmap_segment first_segment(struct pgmap_pin *pin) {
    struct pgmap_segment segment;
    size_t count;
    CHECK(pgmap_pin_segments(pin, &segment, 1, &count) == 0 && count == 1);
    return segment;
}

static void it_reads_and_holds(void) {
    char bytes[8] = {0};
    struct pgmap_pin *pin;
    struct pgmap_events *events;
    struct pgmap_event event;
    CHECK(pgmap_exists(reader, "a", 1) == 1);
    CHECK(pgmap_subscribe(reader, "a", 1, &events) == 0);
    CHECK(pgmap_get(reader, "a", 1, &pin) == 0 && pgmap_pin_len(pin) == 5);
    CHECK(pgmap_unlink(writer, "a", 1) == 0 && pgmap_is_reclaim_requested(pin));
    CHECK(pgmap_read(pin, 0, bytes, 5) == 0 && memcmp(bytes, "bytes", 5) == 0);
    CHECK(memcmp(first_segment(pin).address, "bytes", 5) == 0);
    pgmap_unpin(pin);
    CHECK(pgmap_events_next(events, 10000, &event) == 1 && event.change == PGMAP_REMOVED);
    pgmap_unsubscribe(events);
    put(writer, "a", "bytes", 0);
    CHECK(pgmap_get_for_device(reader, "a", 1, &pin) == 0);
    pgmap_unpin(pin);
}

static void its_memory_cannot_be_written(void) {
    struct pgmap_pin *pin;
    void *memory;
    uint64_t len_bytes;
    CHECK(pgmap_get(reader, "a", 1, &pin) == 0);
    struct pgmap_segment segment = first_segment(pin);
    CHECK(pgmap_memory(reader, &memory, &len_bytes) == 0);
    CHECK(is_mapped(memory, "r--s") && is_mapped(segment.address, "r--s"));
    CHECK(signal_of_a_store(segment.address) == SIGSEGV);
    CHECK(mprotect(memory, len_bytes, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    CHECK(memcmp(segment.address, "bytes", 5) == 0);
    pgmap_unpin(pin);
    // The other one's can, by the same means: they do tell.
    CHECK(pgmap_get(writer, "a", 1, &pin) == 0);
    segment = first_segment(pin);
    CHECK(is_mapped(segment.address, "rw-s") && signal_of_a_store(segment.address) == 0);
    CHECK(memcmp(segment.address, "xytes", 5) == 0);
    pgmap_unpin(pin);
}

#define REFUSED(call) CHECK((call) == -EROFS && SAYS("attached read-only"))

static void every_change_is_refused(void) {
    struct pgmap_writer *made;
    struct pgmap_quota quota;
    uint64_t low, high;
    size_t count;
    REFUSED(pgmap_create(reader, "b", 1, 4096, 0, &made));
    REFUSED(pgmap_unlink(reader, "a", 1));
    REFUSED(pgmap_rename(reader, "a", 1, "b", 1, PGMAP_REPLACE));
    REFUSED(pgmap_set_uid_quota(reader, 1, 1, 1, 1));
    REFUSED(pgmap_set_prefix_quota(reader, "kv/", 3, 1, 1));
    REFUSED(pgmap_remove_uid_quota(reader, 1));
    REFUSED(pgmap_remove_prefix_quota(reader, "kv/", 3));
    REFUSED(pgmap_set_water_marks(reader, 4096, 8192));
    // To ask is no change.
    CHECK(pgmap_set_prefix_quota(writer, "kv/", 3, 1, 1) == 0);
    CHECK(pgmap_quotas(reader, &quota, 1, &count) == 0 && count == 1 && quota.max_files == 1);
    CHECK(pgmap_water_marks(reader, &low, &high) == 0);
    CHECK(pgmap_exists(reader, "a", 1) == 1 && pgmap_exists(reader, "b", 1) == 0);
}

// Nobody answers at this socket.
static void a_deadline_is_kept(const char *socket_path) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%.90s.mute", socket_path);
    int mute = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK(bind(mute, (struct sockaddr *)&address, sizeof address) == 0 && listen(mute, 1) == 0);
    struct pgmap_pool *pool;
    alarm(8); // Less than the 10 s that stand for 0.
    int connected = pgmap_connect_with(address.sun_path, NULL, 100, PGMAP_READ_ONLY, &pool);
    CHECK(connected == -ETIMEDOUT);
    alarm(0);
    close(mute);
}

int main(int argc, char **argv) {
    struct pgmap_pin *pin;
    CHECK(argc == 2);
    CHECK(pgmap_connect(argv[1], "writer", 0, &writer) == 0);
    put(writer, "a", "bytes", 0);
    CHECK(pgmap_connect_with(argv[1], "reader", 5000, PGMAP_READ_ONLY, &reader) == 0);
    CHECK(pgmap_is_read_only(reader) && !pgmap_is_read_only(writer));
    it_reads_and_holds();
    its_memory_cannot_be_written();
    every_change_is_refused();
    a_deadline_is_kept(argv[1]);

    // Until the test has looked who holds it.
    CHECK(pgmap_get(reader, "a", 1, &pin) == 0);
    puts("holding");
    fflush(stdout);
    CHECK(getchar() == EOF);
    pgmap_unpin(pin);
    pgmap_disconnect(reader);
    pgmap_disconnect(writer);
    puts("all good");
    return 0;
}
