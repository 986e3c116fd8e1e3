package main

import (
	"io"
	"maps"
	"strings"
	"testing"
)

func TestFailuresAreShownAndAllIsCounted(t *testing.T) {
	in := `{"Action":"output","Package":"m/a","Test":"TestGood","Output":"chatter\n"}
{"Action":"pass","Package":"m/a","Test":"TestGood","Elapsed":12.3}
{"Action":"output","Package":"m/a","Test":"TestBad","Output":"a_test.go:1: wrong\n"}
{"Action":"fail","Package":"m/a","Test":"TestBad/half","Elapsed":50}
{"Action":"fail","Package":"m/a","Test":"TestBad","Elapsed":100}
{"Action":"skip","Package":"m/a","Test":"TestSkipped"}
{"Action":"output","Package":"m/a","Test":"TestCrashed","Output":"panic: oh\n"}
{"Action":"output","Package":"m/a","Output":"FAIL\tm/a\t0.1s\n"}
{"Action":"fail","Package":"m/a"}
not json
`
	r := newResults()
	var out strings.Builder
	failed, err := r.read(strings.NewReader(in), &out)
	if err != nil || !failed || out.String() != "a_test.go:1: wrong\nFAIL\tm/a\t0.1s\npanic: oh\nnot json\n" {
		t.Errorf("%v, %v:\n%s", failed, err, out.String())
	}
	if want := map[string]string{"a.TestGood": "pass", "a.TestBad": "fail", "a.TestSkipped": "skip", "a.TestCrashed": "fail"}; !maps.Equal(r.Tests, want) {
		t.Errorf("%v", r.Tests)
	}
	out.Reset()
	if r.printSlowest(&out); out.String() != "   100 s a.TestBad\n    12 s a.TestGood\n" {
		t.Errorf("the slowest:\n%s", out.String())
	}
}

func TestACommandThatFailsIsAFailure(t *testing.T) {
	pass := `echo '{"Action":"pass","Package":"m/a","Test":"TestGood"}'`
	fail := `echo '{"Action":"fail","Package":"m/a","Test":"TestBad"}'`
	for script, want := range map[string]struct{ failed, err bool }{
		pass:                  {},
		pass + "; exit 1":     {err: true}, // no package was found
		pass + "; kill -9 $$": {err: true}, // out of memory
		pass + "; " + fail:    {failed: true},
		fail + "; exit 1":     {failed: true},
	} {
		r := newResults()
		failed, err := r.run([]string{"sh", "-c", script}, io.Discard)
		if failed != want.failed || (err != nil) != want.err || len(r.Tests) == 0 {
			t.Errorf("%s: %v, %v, %v", script, failed, err, r.Tests)
		}
	}
	r := newResults()
	if _, err := r.run([]string{"/nonexistent"}, io.Discard); err == nil {
		t.Error("a command that is not there is no failure")
	}
}
