package image

import (
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// What a registry sends is small, and what it is read into must be, too: a list of a million empty objects would be hundreds of MiB,
// for each pull that goes on.
func TestDocumentsTakeNoMoreMemoryThanRealOnes(t *testing.T) {
	many := strings.Repeat("{},", 1<<20) + "{}"
	image := `{"schemaVersion":2,"config":{},"layers":[`
	for name, read := range map[string]func() error{
		"manifests": func() error {
			_, err := parseDocument([]byte(`{"schemaVersion":2,"manifests":[`+many+`]}`), "")
			return err
		},
		"layers": func() error { _, err := parseDocument([]byte(image+many+`]}`), ""); return err },
		"layers of null": func() error {
			_, err := parseDocument([]byte(image+strings.ReplaceAll(many, "{}", "null")+`]}`), "")
			return err
		},
		"a history": func() error {
			_, err := parseConfig([]byte(`{"rootfs":{"type":"layers"},"history":[` + many + `]}`))
			return err
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := read()
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; !errdefs.IsInvalidArgument(err) || took > 64<<20 {
			t.Errorf("%s: %d MiB were taken, %v", name, took>>20, err)
		}
	}
	// As large as an honest one gets.
	index := `{"schemaVersion":2,"manifests":[` + strings.Repeat(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:`+strings.Repeat("a", 64)+`"},`, 9_999)
	if _, err := parseDocument([]byte(strings.TrimSuffix(index, ",")+"]}"), ""); err != nil {
		t.Error(err)
	}
}
