package monitor

import (
	"reflect"
	"testing"
	"time"

	"crishim/internal/seal"
)

// Rows: S69 (part)
func FuzzDecodeExit(f *testing.F) {
	sealed, err := seal.Marshal(Exit{ID: "a", Code: 137, Signal: 9, OOMKills: 2, OOMKilled: true, FinishedAt: time.Unix(1, 5).UTC()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add([]byte(`{"id":"a","code":1,"finishedAt":"2026-11-26T12:00:00.123456789Z"}`))
	f.Add([]byte(`{"id":"b","code":1,"finishedAt":"2026-11-26T12:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		exit, err := DecodeExit("a", data)
		if err != nil {
			return
		}
		if exit.ID != "a" || exit.FinishedAt.IsZero() {
			t.Errorf("believed: %+v", exit)
		}
		again, err := seal.Marshal(exit)
		if err != nil {
			t.Fatal(err)
		}
		now, err := DecodeExit("a", again)
		if err != nil || !now.FinishedAt.Equal(exit.FinishedAt) || now.Code != exit.Code {
			t.Errorf("%q becomes %+v, %v", data, now, err)
		}
	})
}

// Rows: S69 (part)
func FuzzDecodeRecord(f *testing.F) {
	sealed, err := seal.Marshal(Record{Version: 1, Pod: "default/web", PID: 4242, StartTicks: 99})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add([]byte(`{"version":1,"pod":"default/web","pid":4242,"startTicks":99}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		record, err := DecodeRecord(data)
		if err != nil {
			return
		}
		if record.PID <= 0 {
			t.Errorf("believed: %+v", record)
		}
		again, err := seal.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := DecodeRecord(again); err != nil || !reflect.DeepEqual(now, record) {
			t.Errorf("%q becomes %+v, %v", data, now, err)
		}
	})
}
