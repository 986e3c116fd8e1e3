package pullthrough

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"crishim/registry"
)

// serve answers with what the first able endpoint has.
func (p *Session) serve(w http.ResponseWriter, r *http.Request, what registry.Target) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()

	last := p.upstreams[len(p.upstreams)-1]
	verdict := fmt.Errorf("%s serves neither tags nor content of %s: %w", last.Spec.URL.Host, last.Registry(), errdefs.ErrUnavailable)
	answered := false // by the registry itself, which may be there under several entries
	for i, u := range registry.Candidates(p.upstreams, what) {
		err := p.copyFrom(ctx, w, r, u, what)
		if err == nil {
			p.setFailure(nil)
			return
		}
		if ctx.Err() != nil {
			panic(http.ErrAbortHandler) // nobody listens any more
		}
		// A mirror that lacks something says nothing of the registry: the last endpoint's word is the answer.
		if i == 0 || (u == last || u.Spec.Server) && !(answered && errdefs.IsUnavailable(err)) {
			verdict, answered = err, answered || u.Spec.Server && !errdefs.IsUnavailable(err)
		}
	}
	p.setFailure(verdict)
	switch {
	case errdefs.IsNotFound(verdict) && what.Kind == "blobs":
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", verdict.Error())
	case errdefs.IsNotFound(verdict):
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", verdict.Error())
	case errdefs.IsUnauthorized(verdict), errdefs.IsPermissionDenied(verdict), errdefs.IsFailedPrecondition(verdict):
		fail(w, http.StatusForbidden, "DENIED", verdict.Error())
	default:
		fail(w, http.StatusBadGateway, "UNAVAILABLE", verdict.Error())
	}
}

func (p *Session) setFailure(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure = err
}

// passedOn are the headers of an answer that Docker needs.
var passedOn = []string{"Content-Type", "Content-Range", "Accept-Ranges", "Docker-Content-Digest", "Etag", "Last-Modified"}

// smallBlob is the size up to which a blob is looked at before it is passed on, as manifests are: Docker asks once for an image's config.
const smallBlob = 512 << 10

// keeper passes on what it gets but for its last piece, which waits until the whole is known to be what it has to be: Docker fails a pull
// by a blob that came to its end and is another one.
type keeper struct {
	to       io.Writer
	verifier digest.Verifier
	last     []byte
}

// Write implements io.Writer.
func (k *keeper) Write(b []byte) (int, error) {
	if _, err := k.to.Write(k.last); err != nil {
		return 0, err
	}
	k.last = append(k.last[:0], b...)
	return k.verifier.Write(b)
}

func (k *keeper) end() error {
	if !k.verifier.Verified() {
		return fmt.Errorf("it does not have this digest: %w", errdefs.ErrDataLoss)
	}
	_, err := k.to.Write(k.last)
	return err
}

// copyFrom answers from one endpoint. An error means that nothing was written yet.
func (p *Session) copyFrom(ctx context.Context, w http.ResponseWriter, r *http.Request, u *registry.Endpoint, what registry.Target) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := u.Get(ctx, r.Method, what, r.Header)
	if err != nil {
		return err
	}
	body := registry.NewStallReader(resp.Body, p.stall, cancel)
	defer body.Close()
	var content io.Reader = body
	whole := r.Method == http.MethodGet && resp.StatusCode == http.StatusOK
	if r.Method == http.MethodGet && what.Kind == "manifests" || whole && resp.ContentLength >= 0 && resp.ContentLength <= smallBlob {
		data, err := registry.ReadManifest(body, what)
		if err != nil {
			return u.Failed(err)
		}
		resp.ContentLength = int64(len(data))
		content = bytes.NewReader(data)
	}
	for _, key := range passedOn {
		if value := resp.Header.Get(key); value != "" {
			w.Header().Set(key, value)
		}
	}
	if resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	if r.Method == http.MethodHead {
		return nil
	}
	if whole && what.Digest != "" {
		k := &keeper{to: w, verifier: what.Digest.Verifier()}
		if _, err = io.Copy(k, content); err == nil {
			err = k.end()
		}
	} else {
		_, err = io.Copy(w, content)
	}
	if err != nil {
		if r.Context().Err() == nil && p.ctx.Err() == nil {
			// Docker asks again from where this broke off.
			u.Break()
			p.setFailure(u.Failed(fmt.Errorf("the answer broke off: %w", err)))
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}
