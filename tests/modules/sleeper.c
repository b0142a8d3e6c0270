/* sleeper: says that it is ready and sleeps for ever. */
#include <unistd.h>

int main(void) {
    static const char ready[] = "ready\n";
    write(1, ready, sizeof ready - 1);
    for (;;) sleep(1000000);
}
