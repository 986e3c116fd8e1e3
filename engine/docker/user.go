package docker

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"crishim/engine"
)

// processUser is a user in Docker's words.
type processUser struct {
	User     string
	GroupAdd []string
}

// The bounds on an image's passwd and group files (catalogue S11, S16, S17) and on links between them.
const (
	maxUserFile  = 10 << 20
	maxUserLinks = 4
	// maxUserID is Docker's: it looks a larger number up as a name, which an image could map to uid 0.
	maxUserID = math.MaxInt32
)

// imageUsers finds out who an image's users are; files returns its /etc/passwd and /etc/group.
type imageUsers interface {
	configUser(ctx context.Context, id engine.ImageID) (string, error)
	files(ctx context.Context, id engine.ImageID) (passwd, group []byte, err error)
}

// resolveUser decides what to send as user and groups. Docker adds the groups of the image's /etc/group only where the
// user has no ":gid"; so Strict always sends one, and Merge with a gid adds these groups itself.
func resolveUser(ctx context.Context, s *engine.Security, image engine.ImageID, users imageUsers) (processUser, error) {
	user, group, err := askedUser(ctx, s, image, users)
	if err != nil {
		return processUser{}, err
	}
	for _, g := range s.SupplementalGroups {
		if err := checkUserID("supplemental group", g); err != nil {
			return processUser{}, err
		}
	}
	groups := s.SupplementalGroups
	strict := s.GroupsPolicy == engine.GroupsStrict
	_, numericUser := parseUserID(user)
	gid, numericGroup := parseUserID(group)
	switch {
	case numericUser && numericGroup && strict:
		return processUser{User: user + ":" + group, GroupAdd: groupStrings(groups)}, nil
	case numericUser && group == "" && !strict:
		return processUser{User: user, GroupAdd: groupStrings(groups)}, nil
	}
	passwd, groupFile, err := users.files(ctx, image)
	if err != nil {
		return processUser{}, fmt.Errorf("find user %.80q in image %s: %w", user, image, err)
	}
	entry, err := findUser(passwd, user)
	if err != nil {
		return processUser{}, err
	}
	switch {
	case group == "":
		gid = entry.gid
	case !numericGroup:
		if gid, err = findGroup(groupFile, group); err != nil {
			return processUser{}, err
		}
	}
	if !strict {
		member, err := groupsOf(groupFile, entry.name)
		if err != nil {
			return processUser{}, err
		}
		groups = slices.Concat(groups, member)
		slices.Sort(groups)
		groups = slices.Compact(groups)
	}
	return processUser{User: fmt.Sprintf("%d:%d", entry.uid, gid), GroupAdd: groupStrings(groups)}, nil
}

// askedUser is the user and the group ("" when not said) that CRI or else the image names. Both are checked: a user is a
// number that Docker takes for one, or a name that nobody can take for a number (catalogue S14).
func askedUser(ctx context.Context, s *engine.Security, image engine.ImageID, users imageUsers) (user, group string, err error) {
	switch {
	case s.UID != nil:
		if err := checkUserID("run_as_user", *s.UID); err != nil {
			return "", "", err
		}
		user = strconv.FormatInt(*s.UID, 10)
	case s.Username != "":
		user = s.Username
	default:
		if s.GID != nil {
			return "", "", invalid("run_as_group without run_as_user")
		}
		config, err := users.configUser(ctx, image)
		if err != nil {
			return "", "", err
		}
		user, group, _ = strings.Cut(config, ":")
		if user == "" {
			user = "0"
		}
		if group != "" {
			if err := checkUserName("group", group); err != nil {
				return "", "", err
			}
		}
	}
	if err := checkUserName("user", user); err != nil {
		return "", "", err
	}
	if s.GID != nil {
		if err := checkUserID("run_as_group", *s.GID); err != nil {
			return "", "", err
		}
		group = strconv.FormatInt(*s.GID, 10)
	}
	return user, group, nil
}

func checkUserID(what string, id int64) error {
	if id < 0 || id > maxUserID {
		return invalid("%s %d is not within 0 and %d", what, id, maxUserID)
	}
	return nil
}

func checkUserName(what, s string) error {
	if _, ok := parseUserID(s); ok {
		return nil
	}
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || (c < '0' || c > '9') && !strings.ContainsRune(".-$@", rune(c))) {
			return invalid("%s %.80q is neither a number up to %d nor a name", what, s, maxUserID)
		}
	}
	if s == "" || len(s) > 256 {
		return invalid("%s of %d characters", what, len(s))
	}
	return nil
}

// parseUserID takes plain decimal digits only: no sign, space, prefix or other script.
func parseUserID(s string) (int64, bool) {
	if s == "" || len(s) > 10 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n <= maxUserID
}

type passwdEntry struct {
	name     string
	uid, gid int64
}

// findUser looks a name or number up. A number that the file does not have is itself, with group 0, as Docker does it.
func findUser(passwd []byte, user string) (passwdEntry, error) {
	id, numeric := parseUserID(user)
	found := passwdEntry{uid: id}
	ok := numeric
	err := eachLine(passwd, func(fields []string) bool {
		if len(fields) < 4 {
			return true
		}
		uid, valid := parseUserID(fields[2])
		gid, validGroup := parseUserID(fields[3])
		if !valid || !validGroup || (numeric && uid != id) || (!numeric && fields[0] != user) {
			return true
		}
		found, ok = passwdEntry{name: fields[0], uid: uid, gid: gid}, true
		return false
	})
	if err == nil && !ok {
		err = invalid("user %.80q is not in the image's /etc/passwd", user)
	}
	return found, err
}

func findGroup(group []byte, name string) (gid int64, err error) {
	ok := false
	err = eachLine(group, func(fields []string) bool {
		if len(fields) >= 3 && fields[0] == name {
			gid, ok = parseUserID(fields[2])
		}
		return !ok
	})
	if err == nil && !ok {
		err = invalid("group %.80q is not in the image's /etc/group", name)
	}
	return gid, err
}

// groupsOf are the groups that list the user as a member.
func groupsOf(group []byte, user string) ([]int64, error) {
	var groups []int64
	if user == "" {
		return nil, nil
	}
	err := eachLine(group, func(fields []string) bool {
		if len(fields) < 4 || !slices.Contains(strings.Split(fields[3], ","), user) {
			return true
		}
		if gid, ok := parseUserID(fields[2]); ok {
			groups = append(groups, gid)
		}
		return len(groups) < maxGroups
	})
	return groups, err
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

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

// userCache remembers what resolveUser needs to know per image: images do not change under their id.
type userCache struct {
	mu     sync.Mutex
	config map[engine.ImageID]string
	user   map[userQuestion]processUser
}

// userQuestion is everything that an answer depends on.
type userQuestion struct {
	image  engine.ImageID
	wanted string
}

// maxCachedUsers bounds either map; images come and go for years.
const maxCachedUsers = 4096

func question(s *engine.Security, image engine.ImageID) userQuestion {
	number := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return strconv.FormatInt(*n, 10)
	}
	return userQuestion{image, fmt.Sprintf("%s/%q/%s/%v/%s", number(s.UID), s.Username, number(s.GID), s.SupplementalGroups, s.GroupsPolicy)}
}

func (c *userCache) answer(q userQuestion) (processUser, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, ok := c.user[q]
	return u, ok
}

func (c *userCache) learn(q userQuestion, u processUser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.user == nil || len(c.user) >= maxCachedUsers {
		c.user = map[userQuestion]processUser{}
	}
	c.user[q] = u
}

func (c *userCache) configUser(id engine.ImageID) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, ok := c.config[id]
	return u, ok
}

func (c *userCache) learnConfig(id engine.ImageID, user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.config == nil || len(c.config) >= maxCachedUsers {
		c.config = map[engine.ImageID]string{}
	}
	c.config[id] = user
}

// readImageFile reads a regular file from a container that was made and never started, following symbolic links within
// its root. An absent file is empty.
func readImageFile(ctx context.Context, cli *client.Client, id, name string) ([]byte, error) {
	for range maxUserLinks {
		body, _, err := cli.CopyFromContainer(ctx, id, name)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		data, link, err := firstFile(body, name)
		// Not read to its end: what is left of a huge archive is cut off with the connection.
		_ = body.Close()
		if err != nil || link == "" {
			return data, err
		}
		if !path.IsAbs(link) {
			link = path.Join(path.Dir(name), link)
		}
		name = path.Clean(link)
	}
	return nil, invalid("%.200q in the image is a chain of links", name)
}

// firstFile reads the first entry of a tar: its content, or where it links to.
func firstFile(r io.Reader, name string) (data []byte, link string, err error) {
	archive := tar.NewReader(r)
	header, err := archive.Next()
	if errors.Is(err, io.EOF) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read %s from the image: %w", name, err)
	}
	switch {
	case header.Typeflag == tar.TypeSymlink:
		return nil, header.Linkname, nil
	case header.Typeflag != tar.TypeReg:
		return nil, "", invalid("%.200s in the image is not a regular file", name)
	case header.Size > maxUserFile:
		return nil, "", invalid("%.200s in the image has %d bytes, at most %d are read", name, header.Size, maxUserFile)
	}
	data, err = io.ReadAll(io.LimitReader(archive, maxUserFile))
	if err != nil {
		return nil, "", fmt.Errorf("read %s from the image: %w", name, err)
	}
	return data, "", nil
}
