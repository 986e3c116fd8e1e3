package seal

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

type thing struct {
	Version int               `json:"version"`
	Name    string            `json:"name,omitempty"`
	Code    int               `json:"code"`
	More    map[string]string `json:"more"`
}

var sample = thing{1, "a<b>\u2028\"}", 137, map[string]string{"crc32c": `"crc32c":"00000000"}`}}

func sealed(t testing.TB, v any) []byte {
	t.Helper()
	data, err := Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWhatWasSealedIsReadAgain(t *testing.T) {
	var got thing
	if err := Unmarshal(sealed(t, sample), &got); err != nil || !reflect.DeepEqual(got, sample) {
		t.Errorf("%+v, %v", got, err)
	}
	if data := sealed(t, struct{}{}); Check(data) != nil || !json.Valid(data) {
		t.Errorf("an empty object: %q", data)
	}
	if _, err := Marshal([]int{1}); err == nil {
		t.Error("a list was sealed")
	}
}

// What an earlier version wrote is read, and an earlier version reads what is written now, with and without keeping it.
//
// Rows: R05 (part)
func TestEarlierVersionsKnowNoSeal(t *testing.T) {
	data := sealed(t, sample)
	var got thing
	if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, sample) {
		t.Errorf("%+v, %v", got, err)
	}
	got.Code++
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var now thing
	if err := Unmarshal(again, &now); err != nil || now.Code != sample.Code+1 {
		t.Errorf("%+v, %v", now, err)
	}
}

// Rows: R21 (part)
func TestNoFlippedBitIsBelieved(t *testing.T) {
	good := sealed(t, sample)
	for bit := range 8 * len(good) {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		var got thing
		// One in the name of the checksum may make it another member, beside which the object is what it was.
		if err := Unmarshal(bad, &got); err == nil && !reflect.DeepEqual(got, sample) {
			t.Fatalf("believed: %q", bad)
		}
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)/2], "garbage": []byte("\x00\xff\x17"), "a list": []byte(`["no","record"]`),
		"more after it":  append(bytes.Clone(good), '\n'),
		"in another way": bytes.ReplaceAll(good, []byte(`,"crc32c":`), []byte(`, "crc32c" :`)),
		"of another":     bytes.Replace(good, []byte("137"), []byte("138"), 1),
		"twice":          bytes.Replace(good, []byte(`"name"`), []byte(`"version":2,"name"`), 1),
	} {
		if err := Unmarshal(bad, new(thing)); err == nil {
			t.Errorf("%s is believed: %q", name, bad)
		}
	}
}

// Rows: S69 (part)
func FuzzUnmarshal(f *testing.F) {
	f.Add(sealed(f, sample))
	f.Add([]byte(`{"version":1,"code":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got thing
		if Unmarshal(data, &got) != nil {
			return
		}
		var again thing
		if err := Unmarshal(sealed(t, got), &again); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%q becomes %+v, %v", data, again, err)
		}
	})
}
