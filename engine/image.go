package engine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Image is CRI Image.
type Image struct {
	ID          ImageID
	RepoTags    []string
	RepoDigests []string
	Size        uint64 // bytes, more than 0
	// UID or Username is the image's user: UID when numeric, Username otherwise, neither for "" (root is then UID 0).
	UID      *int64
	Username string
	Pinned   bool
	// Config of the image that a container inherits.
	User       string
	Env        []string
	Entrypoint []string
	Cmd        []string
	WorkingDir string
	StopSignal string
	Labels     map[string]string
	Created    time.Time
	// Layers are the digests of the layers' uncompressed content, lowest first; nil where the store does not tell.
	Layers []string
}

// SameContent says that two stores' images are one, however each of them names it: of the same id, or of the same layers
// under the same config. Ids differ where one store takes the config's digest for it and the other the manifest's.
func (i *Image) SameContent(other *Image) bool {
	return i.ID == other.ID || len(i.Layers) > 0 && slices.Equal(i.Layers, other.Layers) && i.User == other.User &&
		slices.Equal(i.Env, other.Env) && slices.Equal(i.Entrypoint, other.Entrypoint) && slices.Equal(i.Cmd, other.Cmd) &&
		i.WorkingDir == other.WorkingDir && i.StopSignal == other.StopSignal && maps.Equal(i.Labels, other.Labels) &&
		i.Created.Equal(other.Created)
}

// ImageCarrier is a store whose images can be carried to another engine's and back, without a registry.
type ImageCarrier interface {
	// ExportImage writes the image, of this id, as one archive: of docker save, or with an OCI layout, or both.
	ExportImage(ctx context.Context, id ImageID, w io.Writer) error
	// ImportImage reads such an archive of one image to its end, checks every digest in it, and stores it under the tags and
	// repository digests of image. What it read is stored whole or not at all.
	ImportImage(ctx context.Context, r io.Reader, image *Image) (*Image, error)
}

// maxImageUser is more than package imageuser takes for the name of a user: nobody runs as what is cut.
const maxImageUser = 300

// ParseImageUser reads the user of an image's config ("user", "uid", either with ":group"). Only what is a uid to the kernel
// is one here; every other number stays text, with which the kubelet refuses runAsNonRoot (CVE-2024-40635).
//
// The text of two images could be too long for the list of all, without which a kubelet removes none. It is cut to a length that is still
// too long for the name of a user.
func ParseImageUser(user string) (*int64, string) {
	name, _, _ := strings.Cut(user, ":")
	if len(name) > maxImageUser {
		return nil, strings.ToValidUTF8(name[:maxImageUser], "?")
	}
	if name == "" {
		return nil, ""
	}
	if strings.Trim(name, "0123456789") != "" {
		return nil, name
	}
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil || n == math.MaxUint32 { // (uid_t)-1 means "no change" to the kernel
		return nil, name
	}
	uid := int64(n)
	return &uid, ""
}

// PullSpec is what PullImage is asked for.
type PullSpec struct {
	Ref         string
	Annotations map[string]string
	Auth        *Auth
	// NoProgress ends a pull that gets no byte and extracts nothing for so long; 0 never does.
	NoProgress time.Duration
}

// Patience is how long the registry's own answer may take to begin: as long as the pull may, but so that its end says which
// registry was silent.
func (s *PullSpec) Patience() time.Duration {
	if s.NoProgress == 0 {
		return math.MaxInt64
	}
	return s.NoProgress / 10 * 9
}

// JoinKey is the same for pulls of the same name, in full, with the same credentials, of which a hash is in it.
func (s *PullSpec) JoinKey(name string) (string, error) {
	data, err := json.Marshal(s.Auth)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", name, err)
	}
	return fmt.Sprintf("%s %x", name, sha256.Sum256(data)), nil
}

// Auth is CRI AuthConfig with the "auth" form already split into username and password.
type Auth struct {
	Username      string
	Password      string
	ServerAddress string
	IdentityToken string
	RegistryToken string
}

// FSUsage is CRI FilesystemUsage: sampled at Timestamp.
type FSUsage struct {
	Timestamp  time.Time
	Mountpoint string
	UsedBytes  uint64
	InodesUsed uint64
}
