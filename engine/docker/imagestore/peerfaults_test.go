package imagestore

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

// 06: the watchdog of a pull ended the daemon where no first message had come, and was off for good after one layer had
// been extracted. See server/peerfaults_test.go.
// Rows: R33
func TestPeerFault06TheWatchdogNeedsNoFirstMessageAndOutlivesALayer(t *testing.T) {
	const limit = 500 * time.Millisecond
	for name, said := range map[string]string{
		"nothing at all":  "",
		"a null message":  "null\n",
		"an empty object": "{}\n",
		"extracted one layer, then the next stalls": `{"status":"Extracting","progressDetail":{"current":5,"total":5},"id":"l1"}
{"status":"Pull complete","id":"l1"}
{"status":"Downloading","progressDetail":{"current":1,"total":9},"id":"l2"}
`,
		"extracting for ever": `{"status":"Extracting","progressDetail":{"current":5,"total":5},"id":"l1"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeDocker(t)
			f.pull = func(w http.ResponseWriter, r *http.Request, _ string) {
				_, _ = w.Write([]byte(said))
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
			s := newStore(t, f, nil)
			start := time.Now()
			_, err := s.PullImage(t.Context(), &engine.PullSpec{Ref: "app", NoProgress: limit})
			took := time.Since(start)
			if !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "nothing came for") || took < limit {
				t.Errorf("%v after %s, want a stall", err, took)
			}
			most := time.Minute
			if !strings.Contains(name, "for ever") {
				most = localPatience * limit // that patience is for the disk only
			}
			if took > most {
				t.Errorf("it took %s", took)
			}
		})
	}
}
