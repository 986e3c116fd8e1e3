package native

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"crishim/internal/process"
)

const (
	patiencePause = 50 * time.Millisecond
	patienceSaid  = 10 * time.Second
)

// patiently tries again for as long as this process is at a limit of the node: who cannot ask must take nothing for gone, as
// what is gone is killed and removed. It returns such an error only once ctx has ended.
func patiently(ctx context.Context, what string, try func() error) error {
	said := time.Time{}
	for {
		err := try()
		if !process.Starved(err) {
			return err
		}
		if time.Since(said) >= patienceSaid {
			said = time.Now()
			klog.ErrorS(err, "This process has no descriptor or memory left; nothing is taken for lost while it waits to "+what)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(patiencePause):
		}
	}
}
