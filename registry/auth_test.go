package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"crishim/registry/hosts"
)

func TestSameSite(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"https://registry-1.docker.io", "https://auth.docker.io", true},
		{"https://reg.corp.example.com:5000", "https://sso.example.com", true},
		{"https://reg:5000", "https://reg:5001", true},
		{"https://reg", "https://auth", false},
		{"https://a.example.com", "https://a.example.org", false},
		{"https://a.co.uk", "https://b.co.uk", false},
		{"https://10.0.0.1:5000", "https://10.0.0.1:5000", true},
		{"https://10.0.0.1:5000", "https://10.0.0.1:5001", false},
		{"https://10.0.0.1:443", "https://10.0.0.1", true},
		{"https://10.0.0.1", "https://10.0.0.1:443", true},
		{"http://localhost:1", "http://localhost:2", false},
		{"https://docker.io", "https://docker.io.evil.example", false},
	} {
		a, errA := url.Parse(tt.a)
		b, errB := url.Parse(tt.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := sameSite(a, b); got != tt.want {
			t.Errorf("sameSite(%s, %s) = %v", tt.a, tt.b, got)
		}
	}
}

// A port that the scheme has by itself may stand in the setting or in the challenge, and in one of them alone.
func TestATokenServerIsNamedWithOrWithoutItsDefaultPort(t *testing.T) {
	for _, tt := range []struct {
		named, realm string
		want         bool
	}{
		{"auth.example.com", "https://auth.example.com/token", true},
		{"auth.example.com:443", "https://Auth.example.com/token", true},
		{"auth.example.com", "https://auth.example.com:443/token", true},
		{"auth.example.com", "http://auth.example.com:80/token", true},
		{"[fd00::1]:443", "https://[fd00::1]/token", true},
		{"auth.example.com:80", "https://auth.example.com/token", false},
		{"auth.example.com", "https://auth.example.com:8443/token", false},
		{"auth.example.com:443", "https://example.com/token", false},
	} {
		realm, err := url.Parse(tt.realm)
		if err != nil {
			t.Fatal(err)
		}
		a := &authorizer{trusted: []string{"other.example.com", tt.named}}
		if got := a.trusts(realm); got != tt.want {
			t.Errorf("%s trusts %s: %v", tt.named, tt.realm, got)
		}
	}
}

func TestChallengesAreReadAsTheyAreWritten(t *testing.T) {
	for line, want := range map[string][]challenge{
		`Bearer realm="https://a/t?x=1,2",service="a \"b\"", scope=repository:x:pull`: {
			{"Bearer", map[string]string{"realm": "https://a/t?x=1,2", "service": `a "b"`, "scope": "repository:x:pull"}},
		},
		// Several may be in one line.
		`Basic realm="Registry", Bearer realm="https://a/t",service="s"`: {
			{"Basic", map[string]string{"realm": "Registry"}}, {"Bearer", map[string]string{"realm": "https://a/t", "service": "s"}},
		},
		`Bearer Realm = "https://a/t" , service=s,Basic realm="Basic, in words"`: {
			{"Bearer", map[string]string{"realm": "https://a/t", "service": "s"}}, {"Basic", map[string]string{"realm": "Basic, in words"}},
		},
		`Negotiate, Basic`:                  {{"Negotiate", nil}, {"Basic", nil}},
		`Negotiate YWJj==, Basic realm="x"`: {{"Negotiate", map[string]string{"ywjj": "="}}, {"Basic", map[string]string{"realm": "x"}}},
		"":                                  nil,
		`=,=,"x" ,`:                         nil,
		"Bearer":                            {{"Bearer", nil}},
		`Bearer realm="`:                    {{"Bearer", map[string]string{"realm": ""}}},
		`Bearer realm="a\`:                  {{"Bearer", map[string]string{"realm": `a\`}}},
	} {
		got := parseChallenges(line)
		if !slices.EqualFunc(got, want, func(a, b challenge) bool { return a.scheme == b.scheme && maps.Equal(a.params, b.params) }) {
			t.Errorf("%s: %v", line, got)
		}
	}
}

// A registry may offer what it takes in one line, in any order: with a token it answers.
func TestATokenIsGotWhicheverChallengeComesFirst(t *testing.T) {
	for _, order := range []string{`Basic realm="x", Bearer realm="%s",service="s"`, `Bearer realm="%s",service="s", Basic realm="x"`} {
		var reg *httptest.Server
		reg = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token":
				_, _ = io.WriteString(w, `{"token":"t"}`)
			case r.Header.Get("Authorization") != "Bearer t":
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(order, reg.URL+"/token"))
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		pull := pullFrom(t, reg, reg.URL)
		u := pull.Open(DefaultStall)[0]
		if resp, err := u.Get(t.Context(), http.MethodGet, Target{"manifests", "latest", ""}, nil); err != nil {
			t.Errorf("%s: %v", order, err)
		} else {
			Discard(resp)
		}
		u.Close()
		reg.Close()
	}
}

// Specification of token authentication: of several scopes each is a parameter of its own (GET), or all are one (OAuth 2).
func TestSeveralScopesAreAskedFor(t *testing.T) {
	realm := &url.URL{Scheme: "https", Host: "auth.example", Path: "/token", RawQuery: "account=a"}
	params := map[string]string{"service": "s", "scope": "repository:a:pull repository:b:pull"}
	req, err := tokenRequest(t.Context(), realm, params, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if got := req.URL.Query(); got.Get("account") != "a" || got.Get("service") != "s" || !slices.Equal(got["scope"], strings.Fields(params["scope"])) {
		t.Errorf("asked for with %v", got)
	}
	req, err = tokenRequest(t.Context(), realm, params, Credentials{IdentityToken: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if got := req.PostFormValue("scope"); got != params["scope"] {
		t.Errorf("asked by a form for %q", got)
	}
}

// A helper that does not answer costs half a minute, and a mirror may ask with each blob.
func TestAMirrorsHelperThatFailsIsAskedOnceInAPull(t *testing.T) {
	mirror := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer mirror.Close()
	pull := pullFrom(t, mirror, mirror.URL)
	pull.Config.Endpoints[0].Server = false
	asked := 0
	pull.MirrorCredentials = func(context.Context, string, string) (Credentials, error) {
		asked++
		return Credentials{Missing: "credential helper slow did not answer"}, nil
	}
	u := pull.Open(DefaultStall)[0]
	defer u.Close()
	for range 3 {
		_, err := u.Get(t.Context(), http.MethodGet, Target{"manifests", "latest", ""}, nil)
		if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "slow did not answer") {
			t.Errorf("%v", err)
		}
	}
	if asked != 1 {
		t.Errorf("the helper was asked %d times", asked)
	}
}

// Where the token server does not answer, the registry is not what is to be looked at.
func TestATokenServerThatIsAwayIsNamed(t *testing.T) {
	away := httptest.NewServer(nil)
	away.Close()
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+strings.Replace(away.URL, "http:", "https:", 1)+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer reg.Close()
	pull := pullFrom(t, reg, reg.URL)
	u := pull.Open(DefaultStall)[0]
	defer u.Close()
	_, err := u.Get(t.Context(), http.MethodGet, Target{"manifests", "latest", ""}, nil)
	if want := "get a token: token server " + strings.TrimPrefix(away.URL, "http://"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
}

// Secrets that are for a registry go neither to its mirrors, nor where a token server sends them on, nor in the clear or to whom
// nobody has verified, whatever the registry names as its token server.
func TestSecretsStayWithTheirRegistry(t *testing.T) {
	const canary = "canary"
	secret := Credentials{Username: "u", Password: canary}
	leaked := func(r *http.Request) bool {
		body, _ := io.ReadAll(r.Body)
		_, password, _ := r.BasicAuth()
		return password == canary || strings.Contains(string(body)+r.URL.RawQuery, canary)
	}
	var told atomic.Int32 // those of the other server's requests that have the secret
	watch := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaked(r) {
			told.Add(1)
		}
		_, _ = io.WriteString(w, `{"token":"t"}`)
	})
	plain, secure := httptest.NewServer(watch), httptest.NewUnstartedServer(watch)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of a client that does not trust it
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	for name, test := range map[string]struct {
		tls         bool
		server      bool
		credentials Credentials
		realm       func(own string) string
		sent        bool
	}{
		"a token server that is trusted":             {false, true, secret, func(string) string { return plain.URL }, true},
		"the same for a mirror":                      {false, false, secret, func(string) string { return plain.URL }, false},
		"one that is not on https, of one that is":   {true, true, secret, func(string) string { return plain.URL }, false},
		"one whose certificate nobody knows":         {true, true, secret, func(string) string { return secure.URL }, false},
		"one that sends a request on":                {false, true, secret, func(own string) string { return own + "/elsewhere" }, false},
		"one that sends a request on with its body":  {false, true, Credentials{IdentityToken: canary}, func(own string) string { return own + "/elsewhere" }, false},
		"one with a user of its own before the host": {false, true, secret, func(string) string { return strings.Replace(plain.URL, "//", "//x@", 1) }, false},
		"one of another protocol":                    {false, true, secret, func(string) string { return "ftp://x.example" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			told.Store(0)
			var own string
			asked := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/elsewhere") {
					http.Redirect(w, r, plain.URL, http.StatusTemporaryRedirect)
					return
				}
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+test.realm(own)+`",service="reg"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
			start := httptest.NewServer
			if test.tls {
				start = httptest.NewTLSServer
			}
			reg := start(asked)
			defer reg.Close()
			own = reg.URL
			at, err := url.Parse(reg.URL + "/v2")
			if err != nil {
				t.Fatal(err)
			}
			pull := Pull{
				Config: &hosts.Config{Registry: "reg.example", Endpoints: []hosts.Endpoint{{
					URL: at, Pull: true, Resolve: true, Server: test.server, TLS: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
				}}},
				Repository: "app", Credentials: test.credentials,
				TokenServers: []string{strings.TrimPrefix(plain.URL, "http://"), strings.TrimPrefix(secure.URL, "https://")},
			}
			u := pull.Open(DefaultStall)[0]
			defer u.Close()
			if resp, err := u.Get(t.Context(), http.MethodGet, Target{"manifests", "latest", ""}, nil); err == nil {
				Discard(resp)
				t.Error("it was given")
			} else if strings.Contains(err.Error(), canary) {
				t.Errorf("the message shows the secret: %v", err)
			}
			if sent := told.Load() > 0; sent != test.sent {
				t.Errorf("the secret was sent: %t", sent)
			}
		})
	}
}
