// SPDX-License-Identifier: Apache-2.0

package oci

// ErrorCode is a code of the distribution specification, section "Error codes".
type ErrorCode string

// Error codes of a registry without uploads.
const (
	CodeBlobUnknown     ErrorCode = "BLOB_UNKNOWN"
	CodeDigestInvalid   ErrorCode = "DIGEST_INVALID"
	CodeManifestUnknown ErrorCode = "MANIFEST_UNKNOWN"
	CodeNameInvalid     ErrorCode = "NAME_INVALID"
	CodeNameUnknown     ErrorCode = "NAME_UNKNOWN"
	CodeDenied          ErrorCode = "DENIED"
	CodeUnsupported     ErrorCode = "UNSUPPORTED"
	CodeTooManyRequests ErrorCode = "TOOMANYREQUESTS"
	// The following codes are not part of the specification. Clients support them because distribution returns them.
	CodeUnavailable  ErrorCode = "UNAVAILABLE"
	CodeUnknown      ErrorCode = "UNKNOWN"
	CodeRangeInvalid ErrorCode = "RANGE_INVALID"
	CodePageInvalid  ErrorCode = "PAGINATION_NUMBER_INVALID"
)

// Error is one entry of an error body.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
	// Detail is any JSON value. nil omits the field.
	Detail any `json:"detail,omitempty"`
}

// ErrorBody is the body of every response with a status of 400 or higher. Its media type is application/json.
type ErrorBody struct {
	Errors []Error `json:"errors"`
}
