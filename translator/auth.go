package translator

import (
	"encoding/base64"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

// Auth is CRI AuthConfig with its "auth" form (base64 of user:password) split; username and password win over it. nil
// for nil and for one that holds nothing. Errors never show what was in it.
func Auth(in *runtimeapi.AuthConfig) (*engine.Auth, error) {
	out := &engine.Auth{
		Username: in.GetUsername(), Password: in.GetPassword(), ServerAddress: in.GetServerAddress(),
		IdentityToken: in.GetIdentityToken(), RegistryToken: in.GetRegistryToken(),
	}
	if in.GetAuth() != "" && out.Username == "" && out.Password == "" {
		var p problems
		// Docker's config.json pads its values with NULs at times.
		data, err := base64.StdEncoding.DecodeString(strings.TrimRight(in.GetAuth(), "\x00 \n"))
		user, password, ok := strings.Cut(string(data), ":")
		if err != nil || !ok {
			p.add("auth.auth", "is not the base64 form of user:password")
			return nil, p.err("registry credentials")
		}
		out.Username, out.Password = user, strings.Trim(password, "\x00")
	}
	if *out == (engine.Auth{}) {
		return nil, nil
	}
	return out, nil
}
