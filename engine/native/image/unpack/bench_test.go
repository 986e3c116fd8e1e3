package unpack

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// benchLayer is a layer of 3,000 files in 100 folders, 60 MB, half as large when compressed.
func benchLayer(b *testing.B) (plain, compressed []byte) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 20_000)
	var entries []entry
	for d := range 100 {
		entries = append(entries, dir(fmt.Sprintf("usr/lib/d%d/", d)))
		for f := range 30 {
			for i := range len(content) / 2 {
				content[i] = byte(r.Uint32())
			}
			entries = append(entries, file(fmt.Sprintf("usr/lib/d%d/f%d", d, f), string(content)))
		}
	}
	plain = archive(b, entries...)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(plain)
	_ = w.Close()
	return plain, z.Bytes()
}

// BenchmarkUnpack compares a gzip layer and a plain one with tar, which neither hashes nor holds to limits.
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	plain, compressed := benchLayer(b)
	base := b.TempDir()
	n := 0
	fresh := func() string { n++; return filepath.Join(base, fmt.Sprint(n)) }
	for name, data := range map[string][]byte{"plain": plain, "gzip": compressed} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				if _, err := unpackTo(b, fresh(), data, DefaultLimits); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("tar-"+name, func(b *testing.B) {
			tar, err := exec.LookPath("tar")
			if err != nil {
				b.Skip("there is no tar to compare with")
			}
			path := filepath.Join(base, name)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				to := fresh()
				if err := os.Mkdir(to, 0o755); err != nil {
					b.Fatal(err)
				}
				if out, err := exec.Command(tar, "xf", path, "-C", to).CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
			}
		})
	}
}
