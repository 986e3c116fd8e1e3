package imageuser

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

const (
	passwd = "# users\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:2000::/home/app:/bin/sh\n4294967296:x:0:0::/:/bin/sh\nbad:x:zero:0::/:\n"
	group  = "root:x:0:\napp:x:2000:\nextra:x:50000:app,root\nmore:x:50001:app\n"
)

func id(n int64) *int64 { return &n }

func TestAUserHasTheIDsAndGroupsThatTheImageAndThePolicySay(t *testing.T) {
	for name, c := range map[string]struct {
		security engine.Security
		config   string
		want     engine.User
		unread   bool // the files are not needed
	}{
		"nothing is said":        {engine.Security{}, "", engine.User{Groups: []int64{0, 50000}}, false},
		"the image's name":       {engine.Security{}, "app", engine.User{UID: 1000, GID: 2000, Groups: []int64{2000, 50000, 50001}}, false},
		"its name and group":     {engine.Security{}, "app:extra", engine.User{UID: 1000, GID: 50000, Groups: []int64{50000, 50001}}, false},
		"CRI's number":           {engine.Security{UID: id(1000)}, "root", engine.User{UID: 1000, GID: 2000, Groups: []int64{2000, 50000, 50001}}, false},
		"an unknown number":      {engine.Security{UID: id(7)}, "", engine.User{UID: 7, Groups: []int64{0}}, false},
		"merge with a group":     {engine.Security{UID: id(1000), GID: id(5), SupplementalGroups: []int64{9, 5}}, "", engine.User{UID: 1000, GID: 5, Groups: []int64{5, 9, 50000, 50001}}, false},
		"strict with a group":    {engine.Security{UID: id(1000), GID: id(5), SupplementalGroups: []int64{9}, GroupsPolicy: engine.GroupsStrict}, "", engine.User{UID: 1000, GID: 5, Groups: []int64{5, 9}}, true},
		"strict without a group": {engine.Security{UID: id(1000), GroupsPolicy: engine.GroupsStrict}, "", engine.User{UID: 1000, GID: 2000, Groups: []int64{2000}}, false},
		"CRI's name":             {engine.Security{Username: "app", GroupsPolicy: engine.GroupsStrict}, "", engine.User{UID: 1000, GID: 2000, Groups: []int64{2000}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			read := false
			got, err := Resolve(&c.security, c.config, func() ([]byte, []byte, error) {
				read = true
				return []byte(passwd), []byte(group), nil
			})
			if err != nil || !reflect.DeepEqual(got, c.want) || read == c.unread {
				t.Fatalf("%+v, %v, files read: %v; want %+v", got, err, read, c.want)
			}
		})
	}
}

// Rows: S14
func TestNothingButAUserIsTakenForOne(t *testing.T) {
	files := func() ([]byte, []byte, error) { return []byte(passwd), []byte(group), nil }
	for _, config := range []string{"4294967296", "-1", "4294967295", "2147483648:0", "0x0", "+0", " 0", "１", "0:4294967296", "app:-1", "nobody", "app:none", "bad", "a b", "..", strings.Repeat("a", 257)} {
		if got, err := Resolve(&engine.Security{}, config, files); !errdefs.IsInvalidArgument(err) {
			t.Errorf("USER %q is %+v, %v", config, got, err)
		}
	}
	for name, s := range map[string]engine.Security{
		"negative uid": {UID: id(-1)}, "large uid": {UID: id(math.MaxInt32 + 1)}, "group alone": {GID: id(5)},
		"large gid": {UID: id(1), GID: id(1 << 32)}, "large group": {UID: id(1), SupplementalGroups: []int64{1 << 31}},
		"number as a name": {Username: "4294967296"}, "name with a group": {Username: "app:0"},
	} {
		if got, err := Resolve(&s, "", files); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestFilesThatCannotBeReadAreAnErrorAndALongLineToo(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Resolve(&engine.Security{}, "app", func() ([]byte, []byte, error) { return nil, nil, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	long := bytes.Repeat([]byte("x"), 2<<20)
	if _, err := Resolve(&engine.Security{}, "app", func() ([]byte, []byte, error) { return long, nil, nil }); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}

func TestHomeIsThatOfTheUserOrTheRoot(t *testing.T) {
	passwd := []byte("short:x:7\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv/app:/bin/sh\nagain:x:1000:1000::/other:/bin/sh\nnone:x:5:5:::\nbad:x:6:6::/\xff:\n")
	for uid, want := range map[int64]string{0: "/root", 1000: "/srv/app", 5: "/", 6: "/", 7: "/", 9: "/"} {
		if got := Home(passwd, uid); got != want {
			t.Errorf("home of %d is %q, want %q", uid, got, want)
		}
	}
	if got := Home(bytes.Repeat([]byte("x"), 2<<20), 0); got != "/" {
		t.Errorf("home by a long line is %q", got)
	}
}
