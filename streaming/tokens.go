package streaming

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// tokenBytes of randomness name a request: more than can be guessed, so a token needs no secret beside it.
const tokenBytes = 32

// verb is the first element of a URL's path.
type verb string

const (
	verbExec        verb = "exec"
	verbAttach      verb = "attach"
	verbPortForward verb = "portforward"
)

// tokens keeps the requests that wait for their client. A token opens one request, of one verb, once, until it expires.
type tokens struct {
	ttl time.Duration
	max int

	mu     sync.Mutex
	closed bool
	byKey  map[tokenKey]*list.Element
	oldest *list.List // of *ticket; all have the same ttl, so the front expires first
}

// tokenKey is the token's digest: neither a map lookup's timing nor a memory dump gives the token away.
type tokenKey [sha256.Size]byte

type ticket struct {
	key     tokenKey
	verb    verb
	serve   http.HandlerFunc
	expires time.Time
}

func newTokens(ttl time.Duration, limit int) *tokens {
	return &tokens{ttl: ttl, max: limit, byKey: map[tokenKey]*list.Element{}, oldest: list.New()}
}

// issue returns a token that opens serve. Errors: ErrResourceExhausted, ErrUnavailable after close.
func (t *tokens) issue(v verb, serve http.HandlerFunc) (string, error) {
	var random [tokenBytes]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	token := base64.RawURLEncoding.EncodeToString(random[:])

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return "", fmt.Errorf("%s: the streaming server is shutting down, ask again after the restart: %w", v, errdefs.ErrUnavailable)
	}
	t.dropExpired()
	if len(t.byKey) >= t.max {
		return "", fmt.Errorf("%s: %d streaming requests wait for their client, ask again within %s: %w",
			v, t.max, t.ttl, errdefs.ErrResourceExhausted)
	}
	tk := &ticket{key: sha256.Sum256([]byte(token)), verb: v, serve: serve, expires: time.Now().Add(t.ttl)}
	t.byKey[tk.key] = t.oldest.PushBack(tk)
	return token, nil
}

// take spends the token and returns what it opens; nil for one that is unknown, spent, expired or of another verb (the
// last is spent too: whoever holds it does not use it as it was meant).
func (t *tokens) take(v verb, token string) http.HandlerFunc {
	key := tokenKey(sha256.Sum256([]byte(token)))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropExpired()
	e, ok := t.byKey[key]
	if !ok {
		return nil
	}
	tk := t.drop(e)
	if tk.verb != v || t.closed {
		return nil
	}
	return tk.serve
}

// close refuses every token, those that wait included.
func (t *tokens) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	clear(t.byKey)
	t.oldest.Init()
}

func (t *tokens) dropExpired() {
	now := time.Now()
	for e := t.oldest.Front(); e != nil && !now.Before(e.Value.(*ticket).expires); e = t.oldest.Front() {
		t.drop(e)
	}
}

func (t *tokens) drop(e *list.Element) *ticket {
	tk := t.oldest.Remove(e).(*ticket)
	delete(t.byKey, tk.key)
	return tk
}

// guessesPerSecond is how many wrong tokens a peer is answered 404 for; maxGuessers bounds the peers remembered.
const (
	guessesPerSecond = 50
	maxGuessers      = 4096
)

// guesses counts wrong tokens by peer in the running second. A right token is never held against it: on the loopback
// address the kubelet and a guessing pod on the host's network are one peer.
type guesses struct {
	mu     sync.Mutex
	second int64
	counts map[netip.Addr]int
}

// allow counts one wrong token, and says whether the peer is still within its rate.
func (g *guesses) allow(peer netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now().Unix(); now != g.second || g.counts == nil {
		g.second, g.counts = now, map[netip.Addr]int{}
	}
	if _, known := g.counts[peer]; !known && len(g.counts) >= maxGuessers {
		return false
	}
	g.counts[peer]++
	return g.counts[peer] <= guessesPerSecond
}
