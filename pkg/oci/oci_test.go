// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestValidateRepository(t *testing.T) {
	t.Parallel()
	for name, valid := range map[string]bool{
		"alpine":                          true,
		"library/alpine":                  true,
		"a/b/c/d":                         true,
		"gardener-project/gardener/x":     true,
		"a--b/c__d/e.f":                   true,
		strings.Repeat("a", 255):          true,
		strings.Repeat("a", 256):          false,
		"":                                false,
		"/alpine":                         false,
		"alpine/":                         false,
		"library//alpine":                 false,
		"Library/alpine":                  false,
		"../alpine":                       false,
		"library/./alpine":                false,
		"library/_manifests":              false,
		"a___b":                           false,
		"a..b":                            false,
		"alpine\n":                        false,
		"library/alpine:3.13":             false,
		"library/alpine@" + someDigest:    false,
		"repositories/x/_layers/sha256/y": false,
	} {
		err := ValidateRepository(name)
		if valid && err != nil {
			t.Errorf("ValidateRepository(%q) = %v", name, err)
		}
		if !valid && !errors.Is(err, ErrRepositoryInvalid) {
			t.Errorf("ValidateRepository(%q) = %v, want ErrRepositoryInvalid", name, err)
		}
	}
}

func TestParseReference(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		in   string
		want Reference
		err  error
	}{
		{in: "3.13.2", want: Reference{Tag: "3.13.2"}},
		{in: "_", want: Reference{Tag: "_"}},
		{in: strings.Repeat("x", 128), want: Reference{Tag: strings.Repeat("x", 128)}},
		{in: someDigest, want: Reference{Digest: someDigest}},
		{in: strings.Repeat("x", 129), err: ErrTagInvalid},
		{in: "", err: ErrTagInvalid},
		{in: "-latest", err: ErrTagInvalid},
		{in: "..", err: ErrTagInvalid},
		{in: "a/b", err: ErrTagInvalid},
		{in: "sha256:e3b0", err: ErrDigestInvalid},
		{in: strings.ToUpper(someDigest), err: ErrDigestInvalid},
		{in: someDigest + "/..", err: ErrDigestInvalid},
		{in: "sha512:" + strings.Repeat("0", 128), err: ErrDigestInvalid},
		{in: "md5:d41d8cd98f00b204e9800998ecf8427e", err: ErrDigestInvalid},
	} {
		got, err := ParseReference(test.in)
		if !errors.Is(err, test.err) {
			t.Errorf("ParseReference(%q): error %v, want %v", test.in, err, test.err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("ParseReference(%q): -want +got\n%s", test.in, diff)
		}
		if err == nil && got.String() != test.in {
			t.Errorf("ParseReference(%q).String() = %q", test.in, got.String())
		}
	}
}

func TestReferenceIn(t *testing.T) {
	t.Parallel()
	if got := (Reference{Tag: "v1"}).In("a/b"); got != "a/b:v1" {
		t.Errorf("tag: %q", got)
	}
	if got := (Reference{Digest: someDigest}).In("a/b"); got != "a/b@"+someDigest {
		t.Errorf("digest: %q", got)
	}
}

func TestManifestMediaType(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, content, want string }{
		{"OCI manifest", `{"schemaVersion":2,"mediaType":"` + MediaTypeManifest + `","config":{},"layers":[]}`, MediaTypeManifest},
		{"docker manifest", `{"schemaVersion":2,"mediaType":"` + MediaTypeDockerManifest + `","config":{}}`, MediaTypeDockerManifest},
		{"docker list", `{"schemaVersion":2,"mediaType":"` + MediaTypeDockerList + `","manifests":[]}`, MediaTypeDockerList},
		{"OCI manifest without media type", `{"schemaVersion":2,"config":{},"layers":[]}`, MediaTypeManifest},
		{"OCI index without media type", `{"schemaVersion":2,"manifests":[]}`, MediaTypeIndex},
		{"schema version 1", `{"schemaVersion":1,"fsLayers":[]}`, ""},
		{"both kinds at once", `{"schemaVersion":2,"config":{},"manifests":[]}`, ""},
		{"another media type", `{"schemaVersion":2,"mediaType":"text/html"}`, ""},
		{"not JSON", `<html>`, ""},
		{"empty", ``, ""},
	} {
		got, err := ManifestMediaType([]byte(test.content))
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
		if (err != nil) != (test.want == "") || err != nil && !errors.Is(err, ErrManifestUnknownType) {
			t.Errorf("%s: error %v", test.name, err)
		}
	}
}

func TestErrorBody(t *testing.T) {
	t.Parallel()
	got, err := json.Marshal(ErrorBody{Errors: []Error{{Code: CodeBlobUnknown, Message: "blob unknown"}}})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}`; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("v1")
	f.Add(someDigest)
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err == nil && (ref.String() != s || strings.ContainsAny(s, "/\\\x00")) {
			t.Errorf("ParseReference(%q) = %+v", s, ref)
		}
	})
}
