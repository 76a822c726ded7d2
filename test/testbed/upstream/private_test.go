// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// docker.io has tokens here and quay.io has not: crane knows both ways to authenticate.
func TestPrivateRepositories(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"docker.io", "quay.io"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			registry := upstream.Start(t, upstream.Options{TokenHosts: []string{"docker.io"}})
			admin := newClient(t, registry)
			spec := images.Spec{Seed: 1, LayerSizes: []int64{1000}}
			for _, repository := range []string{"team/secret", "team/open"} {
				push(t, registry, host+"/"+repository+":v1", spec)
			}
			right := &authn.Basic{Username: "puller", Password: "p:1"}
			wrong := &authn.Basic{Username: "puller", Password: "p:2"}
			pull := func(repository string, who authn.Authenticator) error {
				image, err := crane.Pull(host+"/"+repository+":v1", crane.WithTransport(transport(t, registry)), crane.WithAuth(who))
				if err != nil {
					return err
				}
				_, err = image.RawConfigFile() // a blob
				return err
			}
			check := func(repository string, who authn.Authenticator, allowed bool) {
				t.Helper()
				if err := pull(repository, who); (err == nil) != allowed || err != nil && !strings.Contains(err.Error(), "401") && !strings.Contains(err.Error(), "UNAUTHORIZED") {
					t.Errorf("pulling %s as %v: %v, want it to be allowed: %t", repository, who, err, allowed)
				}
			}
			check("team/secret", authn.Anonymous, true)

			if err := admin.Protect(t.Context(), upstream.Private{Host: host, Repository: "team/secret", Username: right.Username, Password: right.Password}); err != nil {
				t.Fatal(err)
			}
			check("team/secret", authn.Anonymous, false)
			check("team/secret", wrong, false)
			check("team/secret", right, true)
			check("team/open", authn.Anonymous, true)

			// All of the host, and other credentials.
			if err := admin.Protect(t.Context(), upstream.Private{Host: host, Username: wrong.Username, Password: wrong.Password}); err != nil {
				t.Fatal(err)
			}
			check("team/secret", right, false)
			check("team/secret", wrong, true)
			check("team/open", authn.Anonymous, false)
			check("team/open", wrong, true)

			if err := admin.Protect(t.Context()); err != nil {
				t.Fatal(err)
			}
			check("team/secret", authn.Anonymous, true)
		})
	}
}

func TestCredentialsEndTheTokensOfTheFormerOnes(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{TokenHosts: []string{"docker.io"}})
	push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{1000}})
	client := http.Client{Transport: transport(t, registry)}
	token := func(username, password string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", registry.URL+"/token?scope=repository:team/app:pull", nil)
		if err != nil {
			t.Fatal(err)
		}
		if username != "" {
			r.SetBasicAuth(username, password)
		}
		var body struct{ Token string }
		decode(t, do(t, client, "GET", r.URL.String(), r.Header), &body)
		return body.Token
	}
	status := func(token string) int {
		return do(t, client, "GET", registry.URL+"/v2/team/app/manifests/v1", http.Header{"Authorization": {"Bearer " + token}}).StatusCode
	}
	protect := func(password string) {
		t.Helper()
		if err := registry.Protect(upstream.Private{Host: "registry-1.docker.io", Username: "puller", Password: password}); err != nil {
			t.Fatal(err)
		}
	}
	public := token("", "")
	protect("one")
	if got := status(public); got != 401 {
		t.Errorf("a token of the time when the repository was public is answered %d", got)
	}
	first := token("puller", "one")
	if got := status(first); got != 200 {
		t.Errorf("a token for the credentials is answered %d", got)
	}
	if got := status(token("", "")); got != 401 {
		t.Errorf("an anonymous token is answered %d", got)
	}
	protect("two")
	if got := status(first); got != 401 {
		t.Errorf("a token for the former credentials is answered %d", got)
	}
}

func TestBadPrivateRepositoriesAreRefused(t *testing.T) {
	t.Parallel()
	admin := newClient(t, upstream.Start(t, upstream.Options{}))
	for want, private := range map[string]upstream.Private{
		"host: must not be empty":                            {Username: "u", Password: "p"},
		"username: must not be empty nor have a colon in it": {Host: "quay.io", Username: "u:v", Password: "p"},
		"password: must not be empty":                        {Host: "quay.io", Username: "u"},
	} {
		const prefix = "asking upstream for PUT /private: 400 Bad Request: private[0]."
		if err := admin.Protect(t.Context(), private); err == nil || err.Error() != prefix+want {
			t.Errorf("got error %v\nwant %s", err, prefix+want)
		}
	}
}
