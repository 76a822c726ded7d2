// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// imageHost is the registry host in image references of clients that have a configuration for mirrors. Their configuration
// maps it to the address of an upstream or of a cache, without a fallback.
const imageHost = "registry.test"

// registry describes how clients contact an upstream or a cache.
type registry struct {
	address   string     // "127.0.0.1:<port>" or "localhost:<port>"
	authority *authority // nil: http
	// username and password are the credentials of pulls and pushes. Empty: anonymous.
	username, password string
}

func (r registry) url() string {
	if r.authority != nil {
		return "https://" + r.address
	}
	return "http://" + r.address
}

// answers returns an error if the registry does not answer requests. Any status is an answer.
func (r registry) answers(ctx context.Context) error {
	transport := r.transport()
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url()+"/v2/", nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func (r registry) transport() *http.Transport {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	if r.authority != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: r.authority.pool}
	}
	return t
}

// push writes an image and its referrers.
func (r registry) push(ctx context.Context, i image) error {
	transport := r.transport()
	defer transport.CloseIdleConnections()
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuth(authn.Anonymous)}
	if r.username != "" {
		options = append(options, remote.WithAuth(&authn.Basic{Username: r.username, Password: r.password}))
	}
	repository, err := name.NewRepository(r.address + "/" + i.repository)
	if err != nil {
		return err
	}
	if err := push(repository.Tag(i.tag), i.artifact, options); err != nil {
		return fmt.Errorf("pushing %s: %w", i.repository, err)
	}
	for _, referrer := range i.referrers {
		digest, err := referrer.Digest()
		if err != nil {
			return err
		}
		if err := push(repository.Digest(digest.String()), referrer, options); err != nil {
			return fmt.Errorf("pushing a referrer of %s: %w", i.repository, err)
		}
	}
	return nil
}

func push(ref name.Reference, artifact any, options []remote.Option) error {
	switch artifact := artifact.(type) {
	case v1.ImageIndex:
		return remote.WriteIndex(ref, artifact, options...)
	case v1.Image:
		return remote.Write(ref, artifact, options...)
	default:
		return fmt.Errorf("pushing %s: unexpected type %T", ref, artifact)
	}
}

// dockerConfig writes Docker's configuration file with the credentials of the registry into dir and returns its path. Most
// clients read it.
func (r registry) dockerConfig(dir string) (string, error) {
	type login struct {
		Auth string `json:"auth"`
	}
	logins := map[string]login{}
	if r.username != "" {
		auth := login{base64.StdEncoding.EncodeToString([]byte(r.username + ":" + r.password))}
		logins[r.address], logins[imageHost] = auth, auth
	}
	content, err := json.Marshal(map[string]any{"auths": logins})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "docker", "config.json")
	return file, writeFiles(dir, map[string]string{"docker/config.json": string(content)})
}

// hostsDir writes the configuration of containerd, which maps imageHost to the registry, into dir and returns the path of its
// directory.
func (r registry) hostsDir(dir string) (string, error) {
	ca := ""
	if r.authority != nil {
		ca = fmt.Sprintf("ca = %q\n", r.authority.caFile)
	}
	// The value of server prevents a fallback to imageHost. containerd 1.6 rejects files without a table "host".
	content := fmt.Sprintf("server = %[1]q\n%[2]s[host.%[1]q]\ncapabilities = [\"pull\", \"resolve\"]\n%[2]s", r.url(), ca)
	return filepath.Join(dir, "certs.d"), writeFiles(dir, map[string]string{filepath.Join("certs.d", imageHost, "hosts.toml"): content})
}

// environment returns the environment of a client whose files are in dir.
func (r registry) environment(dir string) []string {
	env := environment(dir, "DOCKER_CONFIG="+filepath.Join(dir, "docker"))
	if r.authority != nil {
		env = append(env, "SSL_CERT_FILE="+r.authority.caFile, "SSL_CERT_DIR="+os.DevNull)
	}
	return env
}
