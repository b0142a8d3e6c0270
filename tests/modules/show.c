/* show: prints its arguments, environment and working directory, a line each. */
#include <stdio.h>
#include <unistd.h>

extern char **environ;

int main(int count, char **words) {
    char directory[256];
    for (int i = 0; i < count; i++) printf("argument %s\n", words[i]);
    for (char **variable = environ; *variable; variable++) printf("variable %s\n", *variable);
    printf("directory %s\n", getcwd(directory, sizeof directory) ? directory : "unknown");
    return 0;
}
