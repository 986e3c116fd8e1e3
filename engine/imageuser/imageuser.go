// Package imageuser decides as whom a container runs: what CRI asks for, else the image's USER, looked up in the image's
// own /etc/passwd and /etc/group. Both files are the image's, and not believed: they are bounded, a number is never looked
// up as a name, and no id is taken that an engine could take for a name (docs/reliability.md S14, S16, S17).
package imageuser

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"crishim/engine"
)

const (
	// MaxFile is how many bytes of an image's passwd or group file are read (docs/reliability.md S11, S16, S17).
	MaxFile = 10 << 20
	// MaxID is Docker's: it looks a larger number up as a name, which an image could map to uid 0.
	MaxID = math.MaxInt32
	// maxGroups is the kernel's NGROUPS_MAX.
	maxGroups = 65536
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// Resolve decides the ids of a container's process; configUser is the image's USER, files returns the image's /etc/passwd
// and /etc/group and is asked only where an answer depends on them. Groups are sorted and include the primary one.
func Resolve(s *engine.Security, configUser string, files func() (passwd, group []byte, err error)) (engine.User, error) {
	user, group, err := Asked(s, func() (string, error) { return configUser, nil })
	if err != nil {
		return engine.User{}, err
	}
	strict := s.GroupsPolicy == engine.GroupsStrict
	uid, numericUser := ParseID(user)
	gid, numericGroup := ParseID(group)
	groups := slices.Clone(s.SupplementalGroups)
	if !numericUser || !numericGroup || !strict {
		passwd, groupFile, err := files()
		if err != nil {
			return engine.User{}, fmt.Errorf("find user %.80q in the image: %w", user, err)
		}
		entry, err := FindUser(passwd, user)
		if err != nil {
			return engine.User{}, err
		}
		uid = entry.UID
		switch {
		case group == "":
			gid = entry.GID
		case !numericGroup:
			if gid, err = FindGroup(groupFile, group); err != nil {
				return engine.User{}, err
			}
		}
		if !strict {
			member, err := GroupsOf(groupFile, entry.Name)
			if err != nil {
				return engine.User{}, err
			}
			groups = append(groups, member...)
		}
	}
	groups = append(groups, gid)
	slices.Sort(groups)
	return engine.User{UID: uid, GID: gid, Groups: slices.Compact(groups)}, nil
}

// Asked is the user and the group ("" when not said) that CRI or else the image names; config is asked for the image's USER
// only in the latter case. Both are checked: a user is a number up to MaxID, or a name that nobody can take for a number.
func Asked(s *engine.Security, config func() (string, error)) (user, group string, err error) {
	switch {
	case s.UID != nil:
		if err := CheckID("run_as_user", *s.UID); err != nil {
			return "", "", err
		}
		user = strconv.FormatInt(*s.UID, 10)
	case s.Username != "":
		user = s.Username
	default:
		if s.GID != nil {
			return "", "", invalid("run_as_group without run_as_user")
		}
		config, err := config()
		if err != nil {
			return "", "", err
		}
		user, group, _ = strings.Cut(config, ":")
		if user == "" {
			user = "0"
		}
		if group != "" {
			if err := checkName("group", group); err != nil {
				return "", "", err
			}
		}
	}
	if err := checkName("user", user); err != nil {
		return "", "", err
	}
	if s.GID != nil {
		if err := CheckID("run_as_group", *s.GID); err != nil {
			return "", "", err
		}
		group = strconv.FormatInt(*s.GID, 10)
	}
	for _, g := range s.SupplementalGroups {
		if err := CheckID("supplemental group", g); err != nil {
			return "", "", err
		}
	}
	return user, group, nil
}

// CheckID refuses what is no uid or gid; what names it in the error.
func CheckID(what string, id int64) error {
	if id < 0 || id > MaxID {
		return invalid("%s %d is not within 0 and %d", what, id, MaxID)
	}
	return nil
}

func checkName(what, s string) error {
	if _, ok := ParseID(s); ok {
		return nil
	}
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || (c < '0' || c > '9') && !strings.ContainsRune(".-$@", rune(c))) {
			return invalid("%s %.80q is neither a number up to %d nor a name", what, s, MaxID)
		}
	}
	if s == "" || len(s) > 256 {
		return invalid("%s of %d characters", what, len(s))
	}
	return nil
}

// ParseID takes plain decimal digits only: no sign, space, prefix or other script.
func ParseID(s string) (int64, bool) {
	if s == "" || len(s) > 10 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n <= MaxID
}

// Entry is a line of /etc/passwd; Name is "" for a number that the file does not have.
type Entry struct {
	Name     string
	UID, GID int64
}

// FindUser looks a name or number up. A number that the file does not have is itself, with group 0, as Docker does it.
func FindUser(passwd []byte, user string) (Entry, error) {
	id, numeric := ParseID(user)
	found := Entry{UID: id}
	ok := numeric
	err := eachLine(passwd, func(fields []string) bool {
		if len(fields) < 4 {
			return true
		}
		uid, valid := ParseID(fields[2])
		gid, validGroup := ParseID(fields[3])
		if !valid || !validGroup || (numeric && uid != id) || (!numeric && fields[0] != user) {
			return true
		}
		found, ok = Entry{Name: fields[0], UID: uid, GID: gid}, true
		return false
	})
	if err == nil && !ok {
		err = invalid("user %.80q is not in the image's /etc/passwd", user)
	}
	return found, err
}

// Home is the home directory of a uid by /etc/passwd, "/" where it names none that a variable can have.
func Home(passwd []byte, uid int64) string {
	home := "/"
	_ = eachLine(passwd, func(fields []string) bool { // a file that cannot be read is one that names none
		if len(fields) < 6 {
			return true
		}
		if id, valid := ParseID(fields[2]); !valid || id != uid {
			return true
		}
		if fields[5] != "" && utf8.ValidString(fields[5]) && !strings.ContainsRune(fields[5], 0) {
			home = fields[5]
		}
		return false
	})
	return home
}

// FindGroup looks a group's name up.
func FindGroup(group []byte, name string) (gid int64, err error) {
	ok := false
	err = eachLine(group, func(fields []string) bool {
		if len(fields) >= 3 && fields[0] == name {
			gid, ok = ParseID(fields[2])
		}
		return !ok
	})
	if err == nil && !ok {
		err = invalid("group %.80q is not in the image's /etc/group", name)
	}
	return gid, err
}

// GroupsOf are the groups that list the user as a member.
func GroupsOf(group []byte, user string) ([]int64, error) {
	var groups []int64
	if user == "" {
		return nil, nil
	}
	err := eachLine(group, func(fields []string) bool {
		if len(fields) < 4 || !slices.Contains(strings.Split(fields[3], ","), user) {
			return true
		}
		if gid, ok := ParseID(fields[2]); ok {
			groups = append(groups, gid)
		}
		return len(groups) < maxGroups
	})
	return groups, err
}

// eachLine calls f with the fields of each line until it returns false.
func eachLine(data []byte, f func(fields []string) bool) error {
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if !f(strings.Split(line, ":")) {
			return nil
		}
	}
	if err := scanner.Err(); err != nil {
		return invalid("the image's user files have a line over 1 MiB")
	}
	return nil
}
