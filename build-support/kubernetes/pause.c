/* The process of each pod's sandbox, and process 1 of the lab: reaps its children, does nothing else.
 * With an argument it ends when its standard input does, so that the lab ends with whoever holds the other end of the pipe. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0); }

int main(int argc, char **argv) {
    char byte;
    (void)argv;
    signal(SIGINT, end);
    signal(SIGTERM, end);
    signal(SIGCHLD, reap); /* reads go on after it */
    for (;;) {
        reap(0);
        if (argc < 2) pause();
        else if (read(0, &byte, 1) == 0) _exit(0);
    }
}
