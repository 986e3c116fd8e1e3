package registry

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A registry that limits how often it is asked says when it may be asked again. It is waited for where that is soon and nobody else could
// be asked; who has it wait longer is not kept waiting, and told.
func TestARegistryThatWantsToBeAskedLaterIsAskedLater(t *testing.T) {
	for name, test := range map[string]struct {
		status    int
		header    string
		mirror    bool
		left      time.Duration // the caller's
		stall     time.Duration
		asked     int32
		succeeds  bool
		complaint string
	}{
		"soon":                          {http.StatusTooManyRequests, "1", false, 0, DefaultStall, 2, true, ""},
		"soon, as it is overloaded":     {http.StatusServiceUnavailable, "1", false, 0, DefaultStall, 2, true, ""},
		"a moment that is over":         {http.StatusTooManyRequests, "Thu, 01 Jan 1970 00:00:00 GMT", false, 0, DefaultStall, 2, true, ""},
		"much later":                    {http.StatusTooManyRequests, "3600", false, 0, DefaultStall, 1, false, "1h0m0s"},
		"later than the caller is left": {http.StatusTooManyRequests, "100", false, time.Minute, time.Hour, 1, false, "1m40s"},
		"a mirror, soon":                {http.StatusTooManyRequests, "1", true, 0, DefaultStall, 1, false, "after 1s"},
		"no word of when":               {http.StatusTooManyRequests, "", false, 0, DefaultStall, 1, false, "answered 429 Too Many Requests: unavailable"},
		"no word that is known":         {http.StatusTooManyRequests, "-1", false, 0, DefaultStall, 1, false, "answered 429 Too Many Requests: unavailable"},
		"another failure":               {http.StatusInternalServerError, "1", false, 0, DefaultStall, 1, false, "answered 500"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1) > 1 {
					_, _ = io.WriteString(w, "it")
					return
				}
				if test.header != "" {
					w.Header().Set("Retry-After", test.header)
				}
				w.WriteHeader(test.status)
			}))
			defer reg.Close()
			pull := pullFrom(t, reg, reg.URL)
			if test.mirror {
				pull.Config.Endpoints = slices.Repeat(pull.Config.Endpoints, 2)
			}
			endpoints := pull.Open(test.stall)
			for _, u := range endpoints {
				defer u.Close()
			}
			ctx := t.Context()
			if test.left > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.left)
				defer cancel()
			}
			resp, err := endpoints[0].Get(ctx, http.MethodGet, Target{Kind: "manifests", Reference: "v1"}, nil)
			if err == nil {
				Discard(resp)
			}
			if (err == nil) != test.succeeds || err != nil && (!errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), test.complaint)) {
				t.Errorf("%v", err)
			}
			if n := asked.Load(); n != test.asked {
				t.Errorf("it was asked %d times", n)
			}
		})
	}
}
