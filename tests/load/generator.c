/* The load generator of `make bench`: generator PORT CONNECTIONS SECONDS RATE < request

Sends the request over kept-alive connections to a port of this machine, each after the answer to the one before. With a RATE
of 0 at once (how much is possible?), otherwise so many a second in all, at moments that are drawn beforehand (a Poisson
process, the same in each run): a request whose moment finds no connection idle waits for one, and its latency counts from the
moment when it was due. Otherwise a server that stalls would keep those requests from being sent that it had delayed
("coordinated omission"). Each run of sixteen X in the request becomes another number in each request, in hex.

Answers need a Content-Length. Prints JSON: `answers`, all that came; `seconds` and `answers_counted`, without the first half
second, in which connections are made; `latencies` of those, in µs: median, 99 and 99.9 of a hundred, and the worst. Ends with
an error when any answer is not 200, or none came within 10 s. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 4096, REQUEST_MAX = 4096, ANSWER_MAX = 16384, MARKS_MAX = 32, DIGITS = 16 };
static const int64_t SECOND = 1000000000, SETTLING = 500000000, PATIENCE = 10 * 1000000000LL;

typedef struct {
    int socket;
    int64_t due; /* of the request that is under way */
    size_t held;
    char answer[ANSWER_MAX + 1];
} Connection;

static Connection connections[CONNECTIONS_MAX];
/* Idle connections, the one longest idle first: all of them are used. */
static Connection *idle[CONNECTIONS_MAX];
static unsigned first_idle, idle_count, count;

static char request[REQUEST_MAX];
static size_t request_size, marks[MARKS_MAX], mark_count;
static uint64_t numbered;

static uint32_t *latencies;
static size_t latency_count, latency_room;
static int64_t counted_from;
static uint64_t answers;

static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

static int64_t now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec * SECOND + moment.tv_nsec;
}

/* splitmix64: another number for each one that comes in. */
static uint64_t mixed(uint64_t number) {
    number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9ULL;
    number = (number ^ (number >> 27)) * 0x94d049bb133111ebULL;
    return number ^ (number >> 31);
}

static uint64_t next_number(void) { return mixed(numbered += 0x9e3779b97f4a7c15ULL); }

static void read_request(void) {
    request_size = fread(request, 1, REQUEST_MAX - 1, stdin);
    for (char *at = request; (at = strstr(at, "XXXXXXXXXXXXXXXX")) && mark_count < MARKS_MAX; at += DIGITS)
        marks[mark_count++] = at - request;
}

static void send_request(Connection *connection, int64_t due) {
    for (size_t i = 0; i < mark_count; i++) {
        uint64_t number = next_number();
        for (int digit = 0; digit < DIGITS; digit++, number >>= 4)
            request[marks[i] + digit] = "0123456789abcdef"[number & 15];
    }
    connection->due = due;
    if (send(connection->socket, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size)
        fail("a request was not taken: %s", strerror(errno));
}

static void connect_all(int port, int epoll) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    for (unsigned i = 0; i < count; i++) {
        Connection *connection = idle[i] = &connections[i];
        connection->socket = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (connect(connection->socket, (struct sockaddr *)&address, sizeof address))
            fail("no connection: %s", strerror(errno));
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
        epoll_ctl(epoll, EPOLL_CTL_ADD, connection->socket, &event);
    }
    idle_count = count;
}

/* Whether the answer is complete. */
static int receive(Connection *connection) {
    ssize_t got = recv(connection->socket, connection->answer + connection->held, ANSWER_MAX - connection->held, 0);
    if (got <= 0) fail("a connection was closed before the answer: %s", got ? strerror(errno) : "in order");
    connection->held += got;
    connection->answer[connection->held] = 0;
    char *end = strstr(connection->answer, "\r\n\r\n");
    if (!end) return 0;
    char *length = strcasestr(connection->answer, "\r\ncontent-length:");
    if (strncmp(connection->answer, "HTTP/1.1 200", 12) || !length || length > end)
        fail("an answer of another kind:\n%s", connection->answer);
    if (connection->answer + connection->held < end + 4 + strtoul(length + 17, NULL, 10)) return 0;
    connection->held = 0;
    return 1;
}

static void note(int64_t due, int64_t moment) {
    answers++;
    if (due < counted_from) return;
    if (latency_count == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 16;
        if (!(latencies = realloc(latencies, latency_room * sizeof *latencies))) fail("no memory");
    }
    latencies[latency_count++] = (moment - due) / 1000;
}

static void run(int epoll, double seconds, double rate) {
    struct epoll_event events[256];
    int64_t began = now(), end = began + SETTLING + seconds * SECOND, due = began, moment = began, heard = began;
    counted_from = began + SETTLING;
    while (due < end || idle_count < count) {
        for (; idle_count && due <= moment && due < end; idle_count--, first_idle = (first_idle + 1) % count) {
            send_request(idle[first_idle], due);
            /* A half added: the logarithm of 0 is none. */
            due = rate ? due - log((next_number() >> 11 | 1) * 0x1p-53) / rate * SECOND : moment;
        }
        int64_t wait = idle_count && due < end ? due - moment : SECOND;
        struct timespec most = {wait > 0 ? wait / SECOND : 0, wait > 0 ? wait % SECOND : 0};
        int ready = epoll_pwait2(epoll, events, 256, &most, NULL);
        moment = now();
        for (int i = 0; i < ready; i++) {
            Connection *connection = events[i].data.ptr;
            if (!receive(connection)) continue;
            heard = moment = now();
            note(connection->due, moment);
            idle[(first_idle + idle_count++) % count] = connection;
        }
        if (!rate) due = moment;
        if (idle_count < count && moment - heard > PATIENCE) fail("%u answers did not come", count - idle_count);
        if (idle_count == count) heard = moment;
    }
}

static int ascending(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static uint32_t quantile(double share) { return latencies[(size_t)(share * (latency_count - 1) + 0.5)]; }

int main(int argc, char **argv) {
    if (argc != 5 || (count = atoi(argv[2])) < 1 || count > CONNECTIONS_MAX) fail("generator PORT CONNECTIONS SECONDS RATE");
    int epoll = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1);
    read_request();
    connect_all(atoi(argv[1]), epoll);
    run(epoll, atof(argv[3]), atof(argv[4]));
    if (!latency_count) fail("nothing was answered");
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"answers\": %lu, \"answers_counted\": %zu, \"seconds\": %s, \"latencies\": [%u, %u, %u, %u]}\n",
           (unsigned long)answers, latency_count, argv[3], quantile(0.5), quantile(0.99), quantile(0.999), quantile(1));
    return 0;
}
