package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	maxConfigFile = 1 << 20
	// identityUser is the user name by which a credential helper says that its secret is an identity token.
	identityUser = "<token>"
)

// helperTimeout bounds one call of a credential helper, which may ask a cloud. Tests shorten it.
var helperTimeout = 30 * time.Second

// NodeAuth are config.json files of Docker's form, with credential helpers; the first that knows a registry counts. In one
// file an entry may be for a part of a registry ("quay.io/team"): as in the kubelet the longest counts that the repository lies
// below, then the one of the whole registry; and "*.example.com" is for all registries of that form, behind those that name one.
// Absent files are fine.
type NodeAuth []string

// Find is what the files have for a repository ("team/app") of a registry; none is no error.
func (n NodeAuth) Find(ctx context.Context, registry, repository string) (Credentials, error) {
	var none Credentials
	for _, path := range n {
		config, err := readDockerConfig(path)
		if err != nil {
			return Credentials{}, err
		}
		found, err := config.find(ctx, Host(registry), repository)
		if err != nil {
			return Credentials{}, fmt.Errorf("credentials for %s by %s: %w", registry, path, err)
		}
		if found.Some() {
			return found, nil
		}
		none.Missing = cmp.Or(none.Missing, found.Missing)
	}
	return none, nil
}

// dockerHub are the names under which people and tools write docker.io.
var dockerHub = map[string]bool{"docker.io": true, "index.docker.io": true, "registry-1.docker.io": true}

// DockerHubKey is docker.io's key in config files and for credential helpers.
const DockerHubKey = "https://index.docker.io/v1/"

// Host is the host in a registry's address, which may be a URL; docker.io in all its forms is "docker.io".
func Host(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	host, _, _ := strings.Cut(address, "/")
	host = strings.ToLower(host)
	if dockerHub[host] {
		return "docker.io"
	}
	return host
}

// scope is what is below the host in an address; the version of the API that addresses of registries end in is none.
func scope(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	_, path, _ := strings.Cut(address, "/")
	path = strings.Trim(path, "/")
	for _, version := range []string{"v1", "v2"} {
		if path == version || strings.HasPrefix(path, version+"/") {
			return strings.TrimPrefix(path[len(version):], "/")
		}
	}
	return path
}

// entryFor is the entry of a file for a repository, the zero value if there is none. Empty ones are what Docker leaves of
// those that a helper keeps.
func entryFor[T comparable](entries map[string]T, host, repository string) T {
	var found, none T
	exact, longest := false, -1
	for _, address := range slices.Sorted(maps.Keys(entries)) { // one of two that are for the same is always the same one
		at, entry, named := scope(address), entries[address], Host(address) == host
		if entry == none || !named && !globMatches(Host(address), host) {
			continue
		}
		if exact && !named || exact == named && len(at) <= longest {
			continue
		}
		if at == "" || strings.HasPrefix(repository+"/", at+"/") {
			found, exact, longest = entry, named, len(at)
		}
	}
	return found
}

// globMatches follows the kubelet: each part of the name is matched by itself, and the port is no pattern.
func globMatches(pattern, host string) bool {
	if !strings.ContainsAny(pattern, "*?") {
		return false
	}
	pattern, wantPort, _ := strings.Cut(pattern, ":")
	host, port, _ := strings.Cut(host, ":")
	patterns, parts := strings.Split(pattern, "."), strings.Split(host, ".")
	if wantPort != port || len(patterns) != len(parts) {
		return false
	}
	for i := range parts {
		if ok, err := path.Match(patterns[i], parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// dockerConfig is the part of Docker's config.json that is about registries.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// readDockerConfig reads a config.json; an absent one is empty. Its content is never in an error.
func readDockerConfig(path string) (*dockerConfig, error) {
	var config dockerConfig
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &config, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read node credentials: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfigFile {
		return nil, fmt.Errorf("read node credentials: %s is not a regular file of at most %d bytes: %w", path, maxConfigFile, errdefs.ErrFailedPrecondition)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read node credentials: %w", err)
	}
	if json.Unmarshal(data, &config) != nil {
		return nil, fmt.Errorf("read node credentials: %s is not a config.json of Docker's form: %w", path, errdefs.ErrFailedPrecondition)
	}
	return &config, nil
}

// find follows Docker: the registry's own helper, else the store for all, else what is in the file.
func (c *dockerConfig) find(ctx context.Context, host, repository string) (Credentials, error) {
	helper := entryFor(c.CredHelpers, host, repository)
	if helper == "" {
		helper = c.CredsStore
	}
	missing := ""
	if helper != "" {
		found, err := askHelper(ctx, helper, host)
		if err != nil || found.Some() {
			return found, err
		}
		missing = found.Missing
	}
	auth := entryFor(c.Auths, host, repository)
	found, err := auth.credentials()
	if !found.Some() {
		found.Missing = missing
	}
	return found, err
}

func (a *dockerAuth) credentials() (Credentials, error) {
	out := Credentials{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	if a.Auth == "" {
		return out, nil
	}
	// As the kubelet takes it, with padding or without.
	decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(a.Auth), "="))
	user, password, ok := strings.Cut(string(decoded), ":")
	if err != nil || !ok {
		return Credentials{}, fmt.Errorf("auth is not the base64 of user:password: %w", errdefs.ErrFailedPrecondition)
	}
	out.Username, out.Password = user, strings.TrimRight(password, "\x00")
	return out, nil
}

// askHelper runs docker-credential-NAME get (github.com/docker/docker-credential-helpers). One that has nothing for the
// host ends with an error too; it is told apart from a broken one only by text, so that both mean no credentials, of which the one that
// may be broken says why, as for one that is absent or does not answer.
func askHelper(ctx context.Context, helper, host string) (Credentials, error) {
	if strings.ContainsAny(helper, "/\x00") {
		return Credentials{}, fmt.Errorf("%q is not the name of a credential helper: %w", helper, errdefs.ErrFailedPrecondition)
	}
	program, err := exec.LookPath("docker-credential-" + helper)
	if err != nil {
		return Credentials{Missing: fmt.Sprintf("install credential helper %s: %v", helper, err)}, nil
	}
	if host == "docker.io" {
		host = DockerHubKey
	}
	patient, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(patient, program, "get")
	cmd.Stdin = strings.NewReader(host + "\n")
	cmd.WaitDelay = time.Second // its children may hold the output
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has answered, and left something running
	}
	switch {
	case ctx.Err() != nil:
		return Credentials{}, fmt.Errorf("credential helper %s did not answer: %w", helper, ctx.Err())
	case patient.Err() != nil && err != nil:
		return Credentials{Missing: fmt.Sprintf("credential helper %s did not answer within %v", helper, helperTimeout)}, nil
	}
	var reply struct{ Username, Secret string }
	if err != nil {
		return Credentials{Missing: helperSaid(helper, err, out.String(), complaint.String())}, nil
	}
	if json.Unmarshal(out.Bytes(), &reply) != nil {
		return Credentials{Missing: fmt.Sprintf("credential helper %s answered something else than credentials", helper)}, nil
	}
	if reply.Username == identityUser {
		return Credentials{Username: identityUser, IdentityToken: reply.Secret}, nil
	}
	return Credentials{Username: reply.Username, Password: reply.Secret}, nil
}

// nothingFound is in the answer of a helper that has nothing for a host.
const nothingFound = "credentials not found"

// helperSaid are the words of a helper that ended with an error, "" where it has nothing for the host. What may hold a secret after all
// is left out.
func helperSaid(helper string, err error, out, complaint string) string {
	if strings.Contains(out, nothingFound) || strings.Contains(complaint, nothingFound) {
		return ""
	}
	said := cmp.Or(strings.TrimSpace(out), strings.TrimSpace(complaint))
	if strings.Contains(said, "{") {
		said = ""
	}
	return fmt.Sprintf("credential helper %s: %v: %.300q", helper, err, said)
}
