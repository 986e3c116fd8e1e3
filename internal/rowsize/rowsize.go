// Package rowsize is how much of a row of docs/reliability.md a test runs. It is used by tests only.
package rowsize

import (
	"os"
	"time"
)

// Of is the row's own count in `make counts`, and one of seconds in `make test`. `make counts` has the machine for itself, so that a limit
// of time may be the row's there too; elsewhere one only tells what hangs from what waits for a busy machine.
func Of[N int | int64 | time.Duration](quick, full N) N {
	if os.Getenv("E2E_COUNTS") == "full" {
		return full
	}
	return quick
}
