// Package validation says what is wrong with a RegistryConfig, and what to write instead.
package validation

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// maxUpstream is how long the name of a file may be in Linux. A longer upstream would keep gardener-node-agent from
// applying anything at all on the nodes.
const maxUpstream = 255

// ValidateRegistryConfig checks a config in which the defaults are filled in. The paths of the errors start with
// fldPath and name the fields of v1alpha3.
func ValidateRegistryConfig(config *v1alpha3.RegistryConfig, fldPath *field.Path) field.ErrorList {
	cachesPath := fldPath.Child("caches")
	if len(config.Caches) == 0 {
		return field.ErrorList{field.Required(cachesPath, "at least one cache must be given, for example {upstream: docker.io}")}
	}

	var errs field.ErrorList
	named := map[string]int{} // object name -> index of the first cache that has it
	for i := range config.Caches {
		cache, path := &config.Caches[i], cachesPath.Index(i)

		if invalid := validateUpstream(cache.Upstream, path.Child("upstream")); len(invalid) > 0 {
			errs = append(errs, invalid...)
		} else if first, taken := named[v1alpha3.ObjectName(cache.Upstream)]; !taken {
			named[v1alpha3.ObjectName(cache.Upstream)] = i
		} else if other := config.Caches[first].Upstream; other == cache.Upstream {
			errs = append(errs, field.Duplicate(path.Child("upstream"), cache.Upstream))
		} else {
			errs = append(errs, field.Invalid(path.Child("upstream"), cache.Upstream, fmt.Sprintf(
				"its objects in the Shoot would be named %q like those of %s %q; remove one of the two caches",
				v1alpha3.ObjectName(cache.Upstream), cachesPath.Index(first).Child("upstream"), other)))
		}

		if cache.RemoteURL != nil && *cache.RemoteURL != v1alpha3.DefaultRemoteURL(cache.Upstream) {
			errs = append(errs, validateRemoteURL(*cache.RemoteURL, path.Child("remoteURL"))...)
		}
		if volume, path := cache.Volume, path.Child("volume"); volume != nil {
			if volume.Size != nil {
				errs = append(errs, validateSize(*volume.Size, path.Child("size"))...)
			}
			if name := volume.StorageClassName; name != nil {
				for _, complaint := range utilvalidation.IsDNS1123Subdomain(*name) {
					errs = append(errs, field.Invalid(path.Child("storageClassName"), *name, "must be the name of a StorageClass: "+complaint))
				}
			}
		}
		if gc := cache.GarbageCollection; gc != nil && gc.TTL != nil {
			errs = append(errs, validateTTL(*gc.TTL, path.Child("garbageCollection", "ttl"))...)
		}
	}
	return errs
}

func validateUpstream(upstream string, path *field.Path) field.ErrorList {
	const format = "must be host[:port], for example docker.io"
	rest := upstream
	if _, after, found := strings.Cut(rest, "://"); found {
		rest = after
	}
	rest, _, _ = strings.Cut(rest, "/")
	switch {
	case upstream == "":
		return field.ErrorList{field.Required(path, format)}
	case strings.Contains(upstream, "@"):
		// What stands before the @ may be a password.
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format+", without user name or password")}
	case strings.Contains(upstream, "://"):
		return field.ErrorList{field.Invalid(path, upstream, withSuggestion(format+", without a scheme", rest))}
	case strings.Contains(upstream, "/"):
		return field.ErrorList{field.Invalid(path, upstream, withSuggestion(format+", without a path", rest))}
	case strings.ToLower(upstream) != upstream:
		return field.ErrorList{field.Invalid(path, upstream, withSuggestion(format+", in lower case", rest))}
	case len(upstream) > maxUpstream:
		return field.ErrorList{field.Invalid(path, upstream, fmt.Sprintf("must have at most %d characters, it is the name of a directory on the nodes", maxUpstream))}
	case !isHostPort(upstream):
		return field.ErrorList{field.Invalid(path, upstream, format+" or registry.example.com:5000")}
	}
	return nil
}

// withSuggestion adds what to write instead, if the host and port that can be read out of the bad value are good.
func withSuggestion(complaint, candidate string) string {
	if candidate = strings.ToLower(candidate); !isHostPort(candidate) {
		return complaint
	}
	return fmt.Sprintf("%s; write %q", complaint, candidate)
}

// isHostPort tells whether s is a DNS name or an IPv4 address in lower case, with or without a port from 1 to 65535.
func isHostPort(s string) bool {
	host, port, hasPort := strings.Cut(s, ":")
	if hasPort {
		number, err := strconv.ParseUint(port, 10, 16)
		// A second spelling of the same port ("0443") would be a second cache of the same registry.
		if err != nil || number == 0 || strconv.FormatUint(number, 10) != port {
			return false
		}
	}
	return len(utilvalidation.IsDNS1123Subdomain(host)) == 0
}

func validateRemoteURL(remoteURL string, path *field.Path) field.ErrorList {
	const format = "must be http or https with a host and an optional port, for example https://registry.example.com"
	parsed, err := url.Parse(remoteURL)
	if err != nil {
		// The error and the value may hold a password; what url.Parse does not understand cannot be redacted.
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format)}
	}
	switch {
	case parsed.User != nil:
		return field.ErrorList{field.Invalid(path, parsed.Redacted(), format+", without user name or password")}
	case parsed.RawQuery != "" || parsed.ForceQuery || parsed.Fragment != "":
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format+", without query or fragment")}
	case parsed.Scheme != "http" && parsed.Scheme != "https", !isHostPort(parsed.Host):
		return field.ErrorList{field.Invalid(path, remoteURL, format)}
	case parsed.Path != "" && parsed.Path != "/":
		return field.ErrorList{field.Invalid(path, remoteURL, format+", without a path")}
	}
	return nil
}

func validateSize(size resource.Quantity, path *field.Path) field.ErrorList {
	// Value rounds up, so only a fraction of a byte differs from it: "10m" is a hundredth of a byte.
	whole := resource.NewQuantity(size.Value(), size.Format)
	switch {
	case size.Sign() <= 0:
		return field.ErrorList{field.Invalid(path, size.String(), "must be greater than 0, for example 10Gi")}
	case whole.Cmp(size) != 0:
		return field.ErrorList{field.Invalid(path, size.String(), "must be a whole number of bytes, for example 10Gi")}
	}
	return nil
}

func validateTTL(ttl metav1.Duration, path *field.Path) field.ErrorList {
	if ttl.Duration < 0 {
		return field.ErrorList{field.Invalid(path, ttl.Duration.String(), "must not be negative, for example 168h; 0s means that nothing is ever deleted")}
	}
	return nil
}
