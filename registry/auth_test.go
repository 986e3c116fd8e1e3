package registry

import (
	"net/url"
	"testing"
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

func TestParseChallenge(t *testing.T) {
	scheme, params := parseChallenge(`Bearer realm="https://a/t?x=1,2",service="a \"b\"", scope=repository:x:pull`)
	if scheme != "Bearer" || params["realm"] != "https://a/t?x=1,2" || params["service"] != `a "b"` || params["scope"] != "repository:x:pull" {
		t.Fatalf("%s %v", scheme, params)
	}
	for _, line := range []string{"", "Bearer", `Bearer realm="`, "Basic =,=,", `Bearer realm="a\`} {
		parseChallenge(line) // must end
	}
}
