//go:build ignore

/*
 * The process of a pod sandbox: it holds the pod's namespaces and does nothing else.
 *
 * As pid 1 of a pid namespace (its own or one that the pod shares) it reaps whatever is given to it. SIGTERM and SIGINT end
 * it with status 0. Signals are blocked and waited for, not handled: a blocked signal is queued even to a pid 1, which the
 * kernel otherwise shields from signals without a handler, and no handler means no restorer and no races.
 *
 * It is freestanding: no libc, four system calls. build.sh makes the two binaries that are committed beside it.
 */

#if defined(__x86_64__)
enum { SYS_rt_sigprocmask = 14, SYS_wait4 = 61, SYS_rt_sigtimedwait = 128, SYS_exit_group = 231 };

static long call(long nr, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { SYS_exit_group = 94, SYS_rt_sigprocmask = 135, SYS_rt_sigtimedwait = 137, SYS_wait4 = 260 };

static long call(long nr, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "no system calls for this architecture"
#endif

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, WNOHANG = 1 };

#define MASK(sig) (1UL << ((sig)-1))

void _start(void)
{
	const unsigned long waited = MASK(SIGINT) | MASK(SIGTERM) | MASK(SIGCHLD);

	call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&waited, 0, sizeof waited);
	for (;;) {
		/* Before the first wait too: children may have ended while this program was being started. */
		while (call(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
		long sig = call(SYS_rt_sigtimedwait, (long)&waited, 0, 0, sizeof waited);
		if (sig == SIGINT || sig == SIGTERM)
			call(SYS_exit_group, 0, 0, 0, 0);
	}
}
