package docker

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"crishim/engine"
	"crishim/engine/imageuser"
)

// processUser is a user in Docker's words.
type processUser struct {
	User     string
	GroupAdd []string
}

// maxUserLinks bounds the links between an image's passwd and group files (docs/reliability.md S11).
const maxUserLinks = 4

// imageUsers finds out who an image's users are; files returns its /etc/passwd and /etc/group.
type imageUsers interface {
	configUser(ctx context.Context, id engine.ImageID) (string, error)
	files(ctx context.Context, id engine.ImageID) (passwd, group []byte, err error)
}

// resolveUser decides what to send as user and groups. Docker adds the groups of the image's /etc/group only where the
// user has no ":gid"; so Strict always sends one, and Merge with a gid adds these groups itself.
func resolveUser(ctx context.Context, s *engine.Security, image engine.ImageID, users imageUsers) (processUser, error) {
	user, group, err := imageuser.Asked(s, func() (string, error) { return users.configUser(ctx, image) })
	if err != nil {
		return processUser{}, err
	}
	groups := s.SupplementalGroups
	strict := s.GroupsPolicy == engine.GroupsStrict
	_, numericUser := imageuser.ParseID(user)
	gid, numericGroup := imageuser.ParseID(group)
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
	entry, err := imageuser.FindUser(passwd, user)
	if err != nil {
		return processUser{}, err
	}
	switch {
	case group == "":
		gid = entry.GID
	case !numericGroup:
		if gid, err = imageuser.FindGroup(groupFile, group); err != nil {
			return processUser{}, err
		}
	}
	if !strict {
		member, err := imageuser.GroupsOf(groupFile, entry.Name)
		if err != nil {
			return processUser{}, err
		}
		groups = slices.Concat(groups, member)
		slices.Sort(groups)
		groups = slices.Compact(groups)
	}
	return processUser{User: fmt.Sprintf("%d:%d", entry.UID, gid), GroupAdd: groupStrings(groups)}, nil
}

// userCache remembers what resolveUser needs to know per image: images do not change under their id.
type userCache struct {
	mu     sync.Mutex
	config map[engine.ImageID]string
	user   map[userQuestion]processUser
	// checked are the images whose user files Docker can read.
	checked map[engine.ImageID]bool
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

func (c *userCache) isChecked(id engine.ImageID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.checked[id]
}

func (c *userCache) learnChecked(id engine.ImageID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.checked == nil || len(c.checked) >= maxCachedUsers {
		c.checked = map[engine.ImageID]bool{}
	}
	c.checked[id] = true
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
	case header.Size > imageuser.MaxFile:
		return nil, "", invalid("%.200s in the image has %d bytes, at most %d are read", name, header.Size, imageuser.MaxFile)
	}
	data, err = io.ReadAll(io.LimitReader(archive, imageuser.MaxFile))
	if err != nil {
		return nil, "", fmt.Errorf("read %s from the image: %w", name, err)
	}
	return data, "", nil
}
