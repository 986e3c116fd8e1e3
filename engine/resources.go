package engine

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Check refuses what no engine can set, with ErrInvalidArgument. Requests of CRI were checked field by field before they
// became Resources; this holds for what came another way, too: plugins, records, checkpoints.
func (r *Resources) Check() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case r.MemoryLimit < 0:
		return refuse("memory limit %d is negative", r.MemoryLimit)
	case r.MemorySwap < -1:
		return refuse("memory_swap_limit %d is negative", r.MemorySwap)
	case r.MemorySwap > 0 && r.MemorySwap < r.MemoryLimit:
		return refuse("memory_swap_limit %d (memory and swap together) is below the memory limit %d", r.MemorySwap, r.MemoryLimit)
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return refuse("cpu_quota %d is below the minimum of 1000 µs", r.CPUQuota)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return refuse("cpu_period %d is not within 1000 and 1000000 µs", r.CPUPeriod)
	case r.CPUShares < 0:
		return refuse("cpu_shares %d is negative", r.CPUShares)
	case r.OOMScoreAdj < -1000 || r.OOMScoreAdj > 1000:
		return refuse("oom_score_adj %d is not within -1000 and 1000", r.OOMScoreAdj)
	}
	for file, value := range r.Unified {
		if !validUnified(file) || strings.ContainsRune(value, 0) {
			return refuse("unified resource %.80q is not the name of a cgroup v2 file", file)
		}
	}
	for _, limit := range r.Hugepages {
		if !ValidPageSize(limit.PageSize) {
			return refuse("huge page size %.20q", limit.PageSize)
		}
	}
	return nil
}

// MemoryMax is the limit of memory that is in effect once limit and the files of cgroup v2, which are written last, are set. Of a text
// that is no number of bytes it is 0, none: "max", or what the kernel refuses.
func MemoryMax(limit int64, unified map[string]string) int64 {
	text, given := unified["memory.max"]
	if !given {
		return limit
	}
	text, unit := strings.TrimSpace(text), 0
	if n := len(text) - 1; n > 0 {
		if unit = strings.IndexByte("KMGTPE", text[n]&^0x20) + 1; unit > 0 {
			text = text[:n]
		}
	}
	n, err := strconv.ParseInt(text, 0, 64)
	if err != nil || n > math.MaxInt64>>(10*unit) {
		return 0
	}
	return n << (10 * unit)
}

// validUnified says whether file is a plain cgroup v2 file name ("memory.high"). cgroup.* files move or freeze processes
// and are no limits (CRI-O CVE-2023-6476).
func validUnified(file string) bool {
	controller, rest, ok := strings.Cut(file, ".")
	return ok && controller != "" && controller != "cgroup" && rest != "" && !strings.ContainsAny(file, "/\x00\n") && len(file) < 100
}

// ValidPageSize takes CRI's "64KB", "2MB" and "1GB" forms.
func ValidPageSize(size string) bool {
	number, ok := strings.CutSuffix(size, "B")
	if !ok || number == "" || !strings.Contains("KMG", number[len(number)-1:]) {
		return false
	}
	n, err := strconv.ParseUint(number[:len(number)-1], 10, 32)
	return err == nil && n > 0
}
