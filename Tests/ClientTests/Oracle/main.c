// Runs the cases, each in a process of its own, and prints what they say.
//
// oracle [NAME]...: all cases, or those whose name begins so
#include "oracle.h"
#include <stdarg.h>

// How long a case may take; that of a machine in a translated processor on a busy host is slow.
enum { PATIENCE_SECONDS = 30 };

static const struct group *const groups[] = {&system_group, &machine_group, &memory_group,    &vcpu_group,  &map_group,
					     &state_group,  &mode_group,    &interrupt_group, &event_group, &port_group,
					     &mmio_group,   &exit_group,    &debug_group,     &msr_group,   &local_group,
					     &paging_group};

static char name[128];

void say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	printf("%s: ", name);
	vprintf(format, arguments);
	putchar('\n');
	va_end(arguments);
}

static void run_case(const struct test_case *item)
{
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		alarm(PATIENCE_SECONDS);
		item->run();
		fflush(stdout);
		_exit(0);
	}
	int status;
	if (child < 0 || waitpid(child, &status, 0) != child)
		say("cannot be run");
	else if (WIFSIGNALED(status))
		say("ended by SIG%s", sigabbrev_np(WTERMSIG(status)));
	else if (WEXITSTATUS(status) != 0)
		say("ended with status %d", WEXITSTATUS(status));
}

static int is_wanted(int count, char **prefixes)
{
	for (int i = 1; i < count; i++)
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) return 1;
	return count <= 1;
}

int main(int count, char **arguments)
{
	// What a case said before it crashed is worth having.
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
		for (const struct test_case *item = groups[i]->cases; item->name; item++) {
			snprintf(name, sizeof name, "%s/%s", groups[i]->name, item->name);
			if (is_wanted(count, arguments)) run_case(item);
		}
}
