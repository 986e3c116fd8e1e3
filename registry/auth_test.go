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

func TestParseChallenge(t *testing.T) {
	scheme, params := parseChallenge(`Bearer realm="https://a/t?x=1,2",service="a \"b\"", scope=repository:x:pull`)
	if scheme != "Bearer" || params["realm"] != "https://a/t?x=1,2" || params["service"] != `a "b"` || params["scope"] != "repository:x:pull" {
		t.Fatalf("%s %v", scheme, params)
	}
	for _, line := range []string{"", "Bearer", `Bearer realm="`, "Basic =,=,", `Bearer realm="a\`} {
		parseChallenge(line) // must end
	}
}
