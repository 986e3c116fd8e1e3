package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crishim/registry"
	"crishim/registry/hosts"
)

// repository is where one pull gets its content from: the endpoints of one name.
type repository struct {
	endpoints []*registry.Endpoint
	stall     time.Duration
	// known are documents that were pulled by the name before: what root, its tag or digest, still means need not be got again.
	known map[digest.Digest]ocispec.Descriptor
	root  string
	read  func(d digest.Digest, limit int64) ([]byte, error)
}

// openRepository finds the endpoints of a name. The registry itself is one of them.
func openRepository(dirs []string, named reference.Named, credentials registry.Credentials, options Options, stall, patience time.Duration) (*repository, error) {
	domain := reference.Domain(named)
	config, err := hosts.Lookup(dirs, domain)
	if err != nil {
		return nil, err
	}
	if config == nil {
		if config, err = hosts.Parse(nil, domain, "", false); err != nil {
			return nil, err
		}
	}
	pull := registry.Pull{Config: config, Repository: reference.Path(named), Credentials: credentials, MirrorCredentials: registry.NodeAuth(options.NodeAuth).Find, TokenServers: options.TokenServers, Patience: patience}
	return &repository{endpoints: pull.Open(stall), stall: stall}, nil
}

func (r *repository) close() {
	for _, e := range r.endpoints {
		e.Close()
	}
}

// each asks the endpoints in order until one has the target. A mirror that lacks something says nothing of the registry:
// the last endpoint's word is the answer.
func (r *repository) each(ctx context.Context, what registry.Target, ask func(*registry.Endpoint) error) error {
	last := r.endpoints[len(r.endpoints)-1]
	verdict := fmt.Errorf("%s serves no content of this kind of %s: %w", last.Spec.URL.Host, last.Registry(), errdefs.ErrUnavailable)
	answered := false // by the registry itself, which may be there under several entries
	for i, e := range registry.Candidates(r.endpoints, what) {
		err := ask(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i == 0 || (e == last || e.Spec.Server) && !(answered && errdefs.IsUnavailable(err)) {
			verdict, answered = err, answered || e.Spec.Server && !errdefs.IsUnavailable(err)
		}
	}
	return verdict
}

// manifest gets a manifest or index by tag or digest. What came by digest was held to it.
func (r *repository) manifest(ctx context.Context, ref string, limit int64) (data []byte, mediaType string, err error) {
	what, err := registry.ParseTarget("manifests/" + ref)
	if err != nil {
		return nil, "", malformed("%.200q is neither a tag nor a digest", ref)
	}
	if desc, ok := r.known[what.Digest]; ok && ref != r.root {
		// It was linked by what the registry has given, or vouched for.
		if data, err := r.read(what.Digest, limit); err == nil {
			return data, desc.MediaType, nil
		}
	}
	err = r.each(ctx, what, func(e *registry.Endpoint) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if desc, err := r.unchanged(ctx, e, what); err != nil {
			return err
		} else if desc.Digest != "" {
			if data, err = r.read(desc.Digest, limit); err == nil {
				mediaType = desc.MediaType
				return nil
			}
		}
		resp, err := e.Get(ctx, http.MethodGet, what, http.Header{"Accept": registry.ManifestTypes})
		if err != nil {
			return err
		}
		body := registry.NewStallReader(resp.Body, r.stall, cancel)
		defer func() { _ = body.Close() }()
		got, err := registry.ReadManifest(io.LimitReader(body, limit+1), what)
		if err != nil {
			return e.Failed(err)
		}
		if int64(len(got)) > limit {
			return e.Failed(fmt.Errorf("the manifest is larger than %d bytes: %w", limit, errdefs.ErrDataLoss))
		}
		data, mediaType = got, resp.Header.Get("Content-Type")
		return nil
	})
	return data, mediaType, err
}

// unchanged asks whether a manifest is one that is here, and returns that. It is asked without being got, which registries count and
// limit (Docker Hub): a pod whose image is always pulled asks at each start. An error is one by which it cannot be got either.
func (r *repository) unchanged(ctx context.Context, e *registry.Endpoint, what registry.Target) (ocispec.Descriptor, error) {
	if len(r.known) == 0 {
		return ocispec.Descriptor{}, nil
	}
	resp, err := e.Get(ctx, http.MethodHead, what, http.Header{"Accept": registry.ManifestTypes})
	if errdefs.IsUnavailable(err) {
		return ocispec.Descriptor{}, err
	}
	if err != nil {
		return ocispec.Descriptor{}, nil //nolint:nilerr // it may be about the question alone
	}
	registry.Discard(resp)
	if what.Digest != "" {
		return r.known[what.Digest], nil
	}
	return r.known[digest.Digest(resp.Header.Get("Docker-Content-Digest"))], nil
}

// blobStream is the answer of one endpoint.
type blobStream struct {
	io.Reader
	endpoint *registry.Endpoint
	close    func()
	// again are the bytes that come before those that were asked for, to be thrown away.
	again int64
}

// broken says that the answer was none that the blob can be made of: others are asked first from now on.
func (b *blobStream) broken() { b.endpoint.Break() }

// open implements blobSource.
func (r *repository) open(ctx context.Context, d digest.Digest, offset int64) (stream *blobStream, err error) {
	what, err := registry.ParseTarget("blobs/" + string(d))
	if err != nil {
		return nil, malformed("%.200q is not a digest", d)
	}
	err = r.each(ctx, what, func(e *registry.Endpoint) error {
		stream, err = r.openAt(ctx, e, what, offset)
		if errdefs.IsOutOfRange(err) {
			// It has no ranges, or wrong ones: all of it again rather than none for ever.
			stream, err = r.openAt(ctx, e, what, -offset)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return stream, nil
}

// openAt streams a blob of an endpoint from offset on, which is asked for as a range; where it is negative all of the blob is,
// and as much to be thrown away. ErrOutOfRange where the range was not answered.
func (r *repository) openAt(ctx context.Context, e *registry.Endpoint, what registry.Target, offset int64) (*blobStream, error) {
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	ctx, cancel := context.WithCancel(ctx)
	resp, err := e.Get(ctx, http.MethodGet, what, header)
	if err != nil {
		cancel()
		return nil, err
	}
	body := registry.NewStallReader(resp.Body, r.stall, cancel)
	stream := &blobStream{Reader: body, endpoint: e, close: func() {
		cancel()
		_ = body.Close()
	}}
	if resp.StatusCode == http.StatusPartialContent {
		if start, ok := rangeStart(resp.Header.Get("Content-Range")); !ok || start != offset {
			stream.close()
			return nil, e.Failed(fmt.Errorf("answered another range than was asked for: %w", errdefs.ErrOutOfRange))
		}
		return stream, nil
	}
	stream.again = max(offset, -offset)
	return stream, nil
}

// rangeStart is the first byte of a Content-Range ("bytes 100-199/200").
func rangeStart(value string) (int64, bool) {
	rest, ok := strings.CutPrefix(value, "bytes ")
	first, _, dash := strings.Cut(rest, "-")
	start, err := strconv.ParseInt(strings.TrimSpace(first), 10, 64)
	return start, ok && dash && err == nil
}
