/* Hides AVX-512 and AMX from whatever a process asks CPUID, for benchmarks: loaded by LD_PRELOAD.
 *
 * Libraries choose their kernels by CPUID, and few can be told otherwise. Linux lets the instruction fault, per thread
 * and inherited by new ones (arch_prctl(2), ARCH_SET_CPUID); the handler here executes it and clears the bits. Only in
 * Python: compilers that it starts have handlers of their own, and ask for no kernels. */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

/* Of leaf 7: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS, VP2INTERSECT, AMX
 * and FP16. Of its subleaf 1: BF16 and AMX-FP16. (Intel's manual, volume 2, CPUID.) */
static const unsigned EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned EAX_1 = BIT(5) | BIT(21);

static long faulting(int wanted) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, !wanted); }

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
    if (info->si_code != SI_KERNEL || instruction[0] != 0x0f || instruction[1] != 0xa2) {
        signal(number, SIG_DFL); /* somebody's own mistake, which happens again */
        return;
    }
    unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    faulting(0);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
    faulting(1);
    if (leaf == 7 && subleaf == 0) b &= ~EBX, c &= ~ECX, d &= ~EDX;
    if (leaf == 7 && subleaf == 1) a &= ~EAX_1;
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    if (strncmp(program_invocation_short_name, "python", 6)) return;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSEGV, &action, NULL) || faulting(1)) {
        perror("avx2_only: this machine cannot hide instructions from CPUID");
        exit(2);
    }
}
