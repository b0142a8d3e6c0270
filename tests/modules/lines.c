/* lines BURST PAUSE_MS COUNT: writes numbered lines, each with one call, in bursts; COUNT 0: for ever. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count != 4) return 2;
    long burst = atol(words[1]), pause_ms = atol(words[2]), last = atol(words[3]);
    char line[32];
    for (long number = 0; last == 0 || number < last;) {
        for (long done = 0; done < burst && (last == 0 || number < last); done++)
            if (write(1, line, sprintf(line, "line %ld\n", number++)) < 0) return 1;
        usleep(pause_ms * 1000);
    }
    return 0;
}
